"""Answers from the model as it is: greedy, batched by length, padded on the left."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from llmft.models import max_positions
from llmft.preparing.encoding import end_of_text
from llmft.training import attention


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    on_batch: Callable[[int, int], None] = lambda *_: None,
) -> list[str]:
    """Return the answer to each prompt (token ids), in the prompts' order, without special tokens.

    A prompt that leaves no room for the answer within the model's positions keeps its end.
    """
    from transformers import GenerationConfig

    stops = _stop_ids(model, tokenizer)
    pad = tokenizer.pad_token_id
    pad = pad if pad is not None else stops[0] if stops else 0
    config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        pad_token_id=pad,
        eos_token_id=stops or None,
        use_cache=True,
    )
    room = max_positions(model.config)
    room = room - getattr(model, "n_virtual", 0) if room else None
    keep = max(1, room - max_new_tokens) if room else None
    fitted = [list(p)[-keep:] if keep else list(p) for p in prompts]
    longest_first = sorted(range(len(fitted)), key=lambda i: -len(fitted[i]))
    answers = [""] * len(fitted)
    done = 0
    with dense_attention(model), torch.no_grad():
        for start in range(0, len(fitted), batch_size):
            chosen = longest_first[start : start + batch_size]
            ids, mask = _left_padded([fitted[i] for i in chosen], pad)
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


@contextmanager
def dense_attention(model: Any) -> Iterator[None]:
    """Let the model attend over padded batches with a cache, in evaluation mode, for a while."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    varlen = base.config._attn_implementation == attention.NAME
    training = model.training
    model.eval()
    if varlen:
        base.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        if varlen:
            base.set_attn_implementation(attention.NAME)
        model.train(training)


def _stop_ids(model: Any, tokenizer: Any) -> list[int]:
    declared = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = declared if isinstance(declared, list) else [declared]
    return sorted({int(i) for i in (*ids, end_of_text(tokenizer)) if i is not None})


def _left_padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(1, max(len(row) for row in rows))
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for number, row in enumerate(rows):
        if row:
            ids[number, width - len(row) :] = torch.tensor(row)
            mask[number, width - len(row) :] = 1
    return ids, mask
