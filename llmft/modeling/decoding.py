"""Answers drawn token by token, with a cache of keys and values, as token ids.

Each answer is drawn by random numbers of its own, so it does not depend on what else is in its
batch, on the batches' order, or on what was drawn before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from llmft.api import Answer, SamplingParams, StageError
from llmft.data.encoding import end_of_text
from llmft.modeling import attention, few_rows
from llmft.modeling.segments import moved
from llmft.modeling.token_reader import reader


class Stopped(Exception):
    """Somebody asked to stop while answers were drawn."""


def decode(
    model: Any,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    *,
    batch_size: int,
    seed: Sequence[int] = (0,),
    keep_nuclei: bool = False,
    numbers: Sequence[int] | None = None,
    stopping: Callable[[], bool] = lambda: False,
    on_batch: Callable[[int, int], None] = lambda *_: None,
    on_token: Callable[[int, int], None] = lambda *_: None,
    on_logits: Callable[[torch.Tensor], None] = lambda _: None,
) -> list[Answer]:
    """Return an answer to each prompt (token ids), in the prompts' order.

    Prompts of like length are read together; equal ones that follow each other are read once.
    params: `stop_token_ids` are all that end an answer, and one answer is sampled to each prompt.
    seed: numbers that, with an answer's number, give its random numbers. keep_nuclei: note from
    which tokens each one was sampled.
    numbers: the number by which each answer's random numbers are named; default: its place.
    stopping: asked before each token; Stopped is raised once it says so. on_batch: told after each
    batch how many prompts are answered, and of how many. on_token: told the prompt's place and
    the id of each token as it is taken. on_logits: told, before, the logits (B, V) that the next
    token of each unfinished answer of the batch is sampled from.
    """
    numbers = range(len(prompts)) if numbers is None else numbers
    answers = [Answer() for _ in prompts]
    # A stable sort keeps a prompt's samples together.
    longest_first = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    with dense_attention(model), few_rows.weights_in_front(model), torch.no_grad():
        for start in range(0, len(prompts), batch_size):
            chosen = longest_first[start : start + batch_size]
            rolls = (
                uniforms(params, seed, [numbers[i] for i in chosen]) if params.temperature else None
            )
            rows = [answers[i] for i in chosen]
            asked = [prompts[i] for i in chosen]
            told = partial(_placed, on_token, chosen)
            _answer(model, asked, rows, params, rolls, keep_nuclei, stopping, told, on_logits)
            on_batch(start + len(chosen), len(prompts))
    return answers


def _placed(
    on_token: Callable[[int, int], None], places: Sequence[int], row: int, token: int
) -> None:
    on_token(places[row], token)


def uniforms(params: SamplingParams, seed: Sequence[int], numbers: Sequence[int]) -> torch.Tensor:
    """Return the random numbers in [0, 1) of answers, shape (B, max_new_tokens), float64."""
    import numpy as np

    rolls = [np.random.default_rng((*seed, n)).random(params.max_new_tokens) for n in numbers]
    return torch.from_numpy(np.stack(rolls))


def _answer(
    model: Any,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Answer],
    params: SamplingParams,
    rolls_BT: torch.Tensor | None,
    keep_nuclei: bool,
    stopping: Callable[[], bool],
    on_token: Callable[[int, int], None],
    on_logits: Callable[[torch.Tensor], None],
) -> None:
    device = next(model.parameters()).device
    read_on = reader(model, prompts, device, params.max_new_tokens)
    live = list(range(len(prompts)))
    logits_BV = read_on.logits
    stops = moved(torch.tensor(sorted(params.stop_token_ids), dtype=torch.long), device)
    rolls_BT = moved(rolls_BT, device) if rolls_BT is not None else None
    for t in range(params.max_new_tokens):
        if stopping():
            raise Stopped
        logits_BV = logits_BV[:, : params.vocabulary]
        on_logits(logits_BV)
        logps_BV = log_probabilities(logits_BV, params)
        # Greedy by the logits: of two that differ, the likelihoods may be rounded to one number.
        ids_B = logits_BV.argmax(1) if rolls_BT is None else sampled(logps_BV, rolls_BT[:, t])
        taken_B = logps_BV.gather(1, ids_B.unsqueeze(1)).squeeze(1)
        ended_B = torch.isin(ids_B, stops)
        # In one tensor, so that the host waits for a GPU once a token.
        facts = torch.stack([ids_B.double(), taken_B.double(), ended_B.double()], dim=1).tolist()
        for row, (token, logp, ended) in zip(live, facts, strict=True):
            if math.isnan(logp):
                what = f"the model's logits are not finite at token {t + 1} of an answer"
                or_else = ", or raise temperature" if params.temperature else ""
                raise StageError("E301", what, fix=f"lower learning_rate{or_else}")
            answers[row].ids.append(int(token))
            answers[row].logps.append(logp)
            answers[row].ended = bool(ended)
            on_token(row, int(token))
        if keep_nuclei:
            for row, nucleus in zip(live, _nuclei(logps_BV), strict=True):
                answers[row].nuclei.append(nucleus)
        kept = [place for place, row in enumerate(live) if not answers[row].ended]
        if not kept or t + 1 == params.max_new_tokens:
            return
        keep_B = None
        if len(kept) < len(live):
            live = [live[place] for place in kept]
            keep_B = moved(torch.tensor(kept), device)
            rolls_BT = None if rolls_BT is None else rolls_BT[keep_B]
        logits_BV = read_on.read(ids_B, keep_B)


def log_probabilities(logits_BV: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """Return the log-likelihoods (B, V) of the distribution that tokens are drawn from."""
    logps_BV = torch.log_softmax(logits_BV.float() / (params.temperature or 1.0), dim=1)
    if params.top_k and params.top_k < logps_BV.shape[1]:
        least = logps_BV.topk(params.top_k, dim=1).values[:, -1:]
        logps_BV = logps_BV.masked_fill(logps_BV < least, -torch.inf).log_softmax(1)
    if params.top_p < 1.0:
        ordered, order = logps_BV.sort(dim=1, descending=True)
        before = ordered.exp().cumsum(1) - ordered.exp()
        left_out = torch.zeros_like(before, dtype=torch.bool).scatter(
            1, order, before >= params.top_p
        )
        logps_BV = logps_BV.masked_fill(left_out, -torch.inf).log_softmax(1)
    return logps_BV


def _nuclei(logps_BV: torch.Tensor) -> Sequence[torch.Tensor]:
    """Return for each row the ids (int32, on the CPU) that may be drawn."""
    possible_BV = logps_BV > -torch.inf
    ids = possible_BV.nonzero()[:, 1].to("cpu", torch.int32)
    counts = possible_BV.sum(1).tolist()
    return [part.clone() for part in torch.split(ids, counts)]  # a view would keep all of them


def sampled(logps_BV: torch.Tensor, rolls_B: torch.Tensor) -> torch.Tensor:
    """Return the token (B,) whose stretch of the cumulative distribution a number hits.

    Any token where the likelihoods are no numbers: an index beyond the vocabulary ends a GPU's use.
    """
    below_BV = logps_BV.double().exp().cumsum(1)
    total_B = below_BV[:, -1]
    hit_B = torch.minimum(rolls_B * total_B, torch.nextafter(total_B, total_B.new_zeros(())))
    hit_B1 = torch.searchsorted(below_BV, hit_B.unsqueeze(1), right=True)
    return hit_B1.squeeze(1).clamp(max=logps_BV.shape[1] - 1)


@contextmanager
def dense_attention(model: Any) -> Iterator[None]:
    """Let the model attend over padded batches with a cache, in evaluation mode, for a while."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    own, varlen = base.config._attn_implementation, attention.padding_free(base)
    training = model.training
    model.eval()
    if varlen:
        base.set_attn_implementation(getattr(base, attention.DENSE, "sdpa"))
    try:
        yield
    finally:
        if varlen:
            base.set_attn_implementation(own)
        model.train(training)


def stop_ids(model: Any, tokenizer: Any) -> list[int]:
    """Return the ids that end an answer: those the model declares, and the tokenizer's."""
    declared = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = declared if isinstance(declared, list) else [declared]
    return sorted({int(i) for i in (*ids, end_of_text(tokenizer)) if i is not None})
