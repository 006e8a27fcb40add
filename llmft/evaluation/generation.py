"""Answers from the model as it is: greedy or drawn, batched by length, padded on the left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from llmft.api import SamplingParams
from llmft.modeling.base_model import max_positions
from llmft.modeling.decoding import decode, dense_attention, stop_ids
from llmft.modeling.token_reader import left_padded


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    on_batch: Callable[[int, int], None] = lambda *_: None,
) -> list[str]:
    """Return the likeliest answer to each prompt (token ids), in order, without special tokens.

    A prompt that leaves no room for the answer within the model's positions keeps its end.
    """
    from transformers import GenerationConfig

    stops = stop_ids(model, tokenizer)
    pad = tokenizer.pad_token_id
    pad = pad if pad is not None else stops[0] if stops else 0
    config = GenerationConfig(
        num_beams=1,
        do_sample=False,
        max_new_tokens=max_new_tokens,
        pad_token_id=pad,
        eos_token_id=stops or None,
        use_cache=True,
    )
    fitted = _fitted(model, prompts, max_new_tokens)
    longest_first = sorted(range(len(fitted)), key=lambda i: -len(fitted[i]))
    answers = [""] * len(fitted)
    done = 0
    with dense_attention(model), torch.no_grad():
        for start in range(0, len(fitted), batch_size):
            chosen = longest_first[start : start + batch_size]
            ids, mask = left_padded([fitted[i] for i in chosen], pad=pad)
            device = next(model.parameters()).device
            out = model.generate(
                input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=config
            )
            texts = tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
            for i, text in zip(chosen, texts, strict=True):
                answers[i] = text
            done += len(chosen)
            on_batch(done, len(fitted))
    return answers


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
    fitted = _fitted(model, prompts, params.max_new_tokens)
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


def _fitted(
    model: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> list[Sequence[int]]:
    room = max_positions(model.config)
    room = room - getattr(model, "n_virtual", 0) if room else None
    keep = max(1, room - max_new_tokens) if room else None
    return [list(p)[-keep:] if keep else list(p) for p in prompts]
