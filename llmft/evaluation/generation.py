"""Answers from the model as it is: greedy or drawn, batched by length, padded on the left."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from llmft.api import SamplingParams
from llmft.modeling.base_model import max_positions
from llmft.modeling.decoding import decode, stop_ids
from llmft.system import distributed


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    on_batch: Callable[[int, int], None] = lambda *_: None,
    on_cut: Callable[[int], None] = lambda _: None,
) -> list[str]:
    """Return the likeliest answer to each prompt (token ids), in order, without special tokens.

    A prompt is read whole: within the model's positions, the answer has what room it leaves. Only
    one that fills them all keeps its end. on_cut: told how many do, where there are any.
    Nothing of the model's own generation_config acts but the tokens that end an answer.
    """
    stops = stop_ids(model, tokenizer)
    fitted = _fitted(model, tokenizer, prompts, 1)
    if cut := sum(len(new) < len(old) for new, old in zip(fitted, prompts, strict=True)):
        on_cut(cut)

    def answer(chosen: Sequence[int], room: int) -> list[str]:
        asked = SamplingParams(room, temperature=0.0, stop_token_ids=stops)
        found = decode(model, [fitted[i] for i in chosen], asked, batch_size=len(chosen))
        texts: list[str] = tokenizer.batch_decode(
            [answer.ids for answer in found], skip_special_tokens=True
        )
        return texts

    return _answered(list(_batches(model, fitted, max_new_tokens, batch_size)), answer, on_batch)


def _answered(
    batches: Sequence[tuple[list[int], int]],
    answer: Callable[[Sequence[int], int], list[str]],
    on_batch: Callable[[int, int], None],
) -> list[str]:
    """Return the answer to each prompt, the batches dealt out over the processes."""
    total = sum(len(chosen) for chosen, _ in batches)

    def tell(done: int) -> None:
        on_batch(sum(len(chosen) for chosen, _ in batches[:done]), total)

    found = distributed.dealt(batches, lambda batch: answer(*batch), tell)
    answers = [""] * total
    for (chosen, _), texts in zip(batches, found, strict=True):
        for i, text in zip(chosen, texts, strict=True):
            answers[i] = text
    return answers


def settings(model: Any, tokenizer: Any, max_new_tokens: int) -> dict[str, Any]:
    """Return the settings of greedy answers, in GenerationConfig's names: these and no others."""
    stops = list(stop_ids(model, tokenizer))
    pad = tokenizer.pad_token_id
    return {
        "num_beams": 1,
        "do_sample": False,
        "max_new_tokens": max_new_tokens,
        "pad_token_id": pad if pad is not None else stops[0] if stops else 0,
        "eos_token_id": stops or None,
        "use_cache": True,
    }


def sample(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    *,
    seed: tuple[int, ...],
    batch_size: int,
    on_batch: Callable[[int, int], None] = lambda *_: None,
) -> list[list[str]]:
    """Return `num_return_sequences` answers to each prompt (token ids), drawn by the seed.

    An answer depends on its prompt and its place, and on no other prompt or batch. A prompt that
    leaves no room for the answer keeps its end.
    """
    count = params.num_return_sequences
    fitted = _fitted(model, tokenizer, prompts, params.max_new_tokens)
    stops = (*stop_ids(model, tokenizer), *params.stop_token_ids)
    answers = decode(
        model,
        [prompt for prompt in fitted for _ in range(count)],
        replace(params, stop_token_ids=stops),
        seed=seed,
        batch_size=batch_size,
        on_batch=on_batch,
    )
    texts = tokenizer.batch_decode([answer.ids for answer in answers], skip_special_tokens=True)
    return [texts[start : start + count] for start in range(0, len(texts), count)]


def _batches(
    model: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int, batch_size: int
) -> Iterator[tuple[list[int], int]]:
    """Yield which prompts are answered together, long ones first, and with how many tokens.

    A prompt that leaves less room than was asked for is answered alone, within that.
    """
    room = _room(model)
    limits = [min(max_new_tokens, room - len(p)) if room else max_new_tokens for p in prompts]
    longest_first = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    for i in longest_first:
        if limits[i] < max_new_tokens:
            yield [i], limits[i]
    rest = [i for i in longest_first if limits[i] == max_new_tokens]
    for start in range(0, len(rest), batch_size):
        yield rest[start : start + batch_size], max_new_tokens


def _room(model: Any) -> int | None:
    """Return how many tokens a row may have beside an adapter's; None where there is no limit."""
    room = max_positions(model.config)
    return room - getattr(model, "n_virtual", 0) if room else None


def _fitted(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> list[Sequence[int]]:
    """Return prompts that leave room for an answer: one too long loses its start, but BOS stays."""
    room = _room(model)
    if not room:
        return [list(prompt) for prompt in prompts]
    keep, fitted = max(1, room - max_new_tokens), list[Sequence[int]]()
    for prompt in prompts:
        begins = int(bool(prompt) and prompt[0] == tokenizer.bos_token_id and keep > 1)
        cut = max(len(prompt) - keep, 0)
        fitted.append([*prompt[:begins], *prompt[begins + cut :]] if cut else list(prompt))
    return fitted
