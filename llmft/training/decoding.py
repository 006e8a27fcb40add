"""Answers drawn token by token, with a cache of keys and values, as token ids.

Each answer is drawn by random numbers of its own, so it does not depend on what else is in its
batch, on the batches' order, or on what was drawn before.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from llmft.api import Answer
from llmft.preparing.encoding import end_of_text
from llmft.training import attention


class Stopped(Exception):
    """Somebody asked to stop while answers were drawn."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """How tokens are drawn. temperature 0: always the likeliest. stops: ids that end an answer.

    seed: numbers that, with an answer's number, name its random numbers. keep_nuclei: note from
    which tokens each one was drawn.
    """

    max_new_tokens: int
    stops: Sequence[int] = ()
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: tuple[int, ...] = (0,)
    keep_nuclei: bool = False


def decode(
    model: Any,
    prompts: Sequence[Sequence[int]],
    drawing: Drawing,
    *,
    batch_size: int,
    numbers: Sequence[int] | None = None,
    stopping: Callable[[], bool] = lambda: False,
    on_batch: Callable[[int, int], None] = lambda *_: None,
) -> list[Answer]:
    """Return an answer to each prompt (token ids), in the prompts' order.

    Prompts of like length are read together; equal ones that follow each other are read once.
    numbers: the number by which each answer's random numbers are named; default: its place.
    stopping: asked before each token; Stopped is raised once it says so. on_batch: told after each
    batch how many prompts are answered, and of how many.
    """
    numbers = range(len(prompts)) if numbers is None else numbers
    answers = [Answer() for _ in prompts]
    # A stable sort keeps a prompt's samples together.
    longest_first = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    with dense_attention(model), torch.no_grad():
        for start in range(0, len(prompts), batch_size):
            chosen = longest_first[start : start + batch_size]
            rolls = uniforms(drawing, [numbers[i] for i in chosen]) if drawing.temperature else None
            rows = [answers[i] for i in chosen]
            _answer(model, [prompts[i] for i in chosen], rows, drawing, rolls, stopping)
            on_batch(start + len(chosen), len(prompts))
    return answers


def uniforms(drawing: Drawing, numbers: Sequence[int]) -> torch.Tensor:
    """Return the random numbers in [0, 1) of answers, shape (B, max_new_tokens), float64."""
    import numpy as np

    rolls = [np.random.default_rng((*drawing.seed, n)).random(drawing.max_new_tokens)
             for n in numbers]  # fmt: skip
    return torch.from_numpy(np.stack(rolls))


def _answer(
    model: Any,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Answer],
    drawing: Drawing,
    rolls_BT: torch.Tensor | None,
    stopping: Callable[[], bool],
) -> None:
    device = next(model.parameters()).device
    reader = _reader(model, prompts, device)
    live = list(range(len(prompts)))
    logits_BV = reader.logits
    stops = torch.tensor(sorted(drawing.stops), device=device, dtype=torch.long)
    rolls_BT = rolls_BT.to(device) if rolls_BT is not None else None
    for t in range(drawing.max_new_tokens):
        if stopping():
            raise Stopped
        logps_BV = log_probabilities(logits_BV, drawing)
        ids_B = logps_BV.argmax(1) if rolls_BT is None else drawn(logps_BV, rolls_BT[live, t])
        taken_B = logps_BV.gather(1, ids_B.unsqueeze(1)).squeeze(1)
        ended_B = torch.isin(ids_B, stops)
        facts = zip(live, ids_B.tolist(), taken_B.tolist(), ended_B.tolist(), strict=True)
        for row, token, logp, ended in facts:
            answers[row].ids.append(token)
            answers[row].logps.append(logp)
            answers[row].ended = ended
        if drawing.keep_nuclei:
            for row, nucleus in zip(live, _nuclei(logps_BV), strict=True):
                answers[row].nuclei.append(nucleus)
        live = [row for row in live if not answers[row].ended]
        if not live or t + 1 == drawing.max_new_tokens:
            return
        keep_B = (~ended_B).nonzero().squeeze(1) if len(live) < len(ended_B) else None
        logits_BV = reader.read(ids_B, keep_B)


def log_probabilities(logits_BV: torch.Tensor, drawing: Drawing) -> torch.Tensor:
    """Return the log-likelihoods (B, V) of the distribution that tokens are drawn from."""
    logps_BV = torch.log_softmax(logits_BV.float() / (drawing.temperature or 1.0), dim=1)
    if drawing.top_k and drawing.top_k < logps_BV.shape[1]:
        least = logps_BV.topk(drawing.top_k, dim=1).values[:, -1:]
        logps_BV = logps_BV.masked_fill(logps_BV < least, -torch.inf).log_softmax(1)
    if drawing.top_p < 1.0:
        ordered, order = logps_BV.sort(dim=1, descending=True)
        before = ordered.exp().cumsum(1) - ordered.exp()
        left_out = torch.zeros_like(before, dtype=torch.bool).scatter(
            1, order, before >= drawing.top_p
        )
        logps_BV = logps_BV.masked_fill(left_out, -torch.inf).log_softmax(1)
    return logps_BV


def _nuclei(logps_BV: torch.Tensor) -> Sequence[torch.Tensor]:
    """Return for each row the ids (int32, on the CPU) that may be drawn."""
    possible_BV = logps_BV > -torch.inf
    ids = possible_BV.nonzero()[:, 1].to("cpu", torch.int32)
    counts = possible_BV.sum(1).tolist()
    return [part.clone() for part in torch.split(ids, counts)]  # a view would keep all of them


def drawn(logps_BV: torch.Tensor, rolls_B: torch.Tensor) -> torch.Tensor:
    """Return the token (B,) whose stretch of the cumulative distribution a number hits."""
    below_BV = logps_BV.double().exp().cumsum(1)
    total_B = below_BV[:, -1]
    hit_B = torch.minimum(rolls_B * total_B, torch.nextafter(total_B, total_B.new_zeros(())))
    return torch.searchsorted(below_BV, hit_B.unsqueeze(1), right=True).squeeze(1)


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


def stop_ids(model: Any, tokenizer: Any) -> list[int]:
    """Return the ids that end an answer: those the model declares, and the tokenizer's."""
    declared = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = declared if isinstance(declared, list) else [declared]
    return sorted({int(i) for i in (*ids, end_of_text(tokenizer)) if i is not None})


# --- reading on, token by token


def _reader(model: Any, prompts: Sequence[Sequence[int]], device: torch.device) -> Any:
    """Return what reads tokens: with a cache where the model is known to keep one, else without."""
    peft = getattr(model, "peft_config", None)
    virtual = peft is not None and any(config.is_prompt_learning for config in peft.values())
    wraps = hasattr(model, "prefill") or (peft is not None and not virtual)
    if wraps or hasattr(type(model), "_supports_sdpa"):  # transformers' own
        read = _CachedReader.of(model, prompts, device)
        if read is not None:
            return read
    return _Rereader(model, prompts, device)


class _CachedReader:
    """Reads one more token of each row at a time; keys and values of all before are kept.

    logits: of the next token, (B, V). mask_BW: which columns of the cache are real.
    """

    def __init__(
        self, model: Any, logits_BV: torch.Tensor, cache: Any, mask_BW: torch.Tensor
    ) -> None:
        self.base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.logits, self.cache, self.mask_BW = logits_BV, cache, mask_BW
        self.places_B = mask_BW.sum(1)
        accepted = inspect.signature(self.base.forward).parameters
        self.takes_places = "position_ids" in accepted
        self.whole = bool(mask_BW.all())

    @classmethod
    def of(
        cls, model: Any, prompts: Sequence[Sequence[int]], device: torch.device
    ) -> _CachedReader | None:
        """Return a reader that has read the prompts; None where the model cannot keep them."""
        unique: list[Sequence[int]] = []
        owner: list[int] = []
        for prompt in prompts:
            if not unique or prompt != unique[-1]:
                unique.append(prompt)
            owner.append(len(unique) - 1)
        ids_BT, mask_BT = left_padded(unique, device)
        found = (
            model.prefill(ids_BT, mask_BT)
            if hasattr(model, "prefill")
            else _prefill(model, ids_BT, mask_BT)
        )
        if found is None or not hasattr(found[1], "batch_select_indices"):
            return None
        logits, cache, mask = found
        if len(unique) < len(prompts):
            rows = torch.tensor(owner, device=device)
            cache.batch_select_indices(rows)
            logits, mask = logits[rows], mask[rows]
        return cls(model, logits, cache, mask)

    def read(self, ids_B: torch.Tensor, keep_B: torch.Tensor | None) -> torch.Tensor:
        """Read a token of each row, of the rows `keep_B` only, and return the next logits."""
        if keep_B is not None:
            self.cache.batch_select_indices(keep_B)
            ids_B, self.places_B = ids_B[keep_B], self.places_B[keep_B]
            self.mask_BW = self.mask_BW[keep_B]
        self.mask_BW = torch.nn.functional.pad(self.mask_BW, (0, 1), value=1)
        inputs: dict[str, Any] = {"attention_mask": None if self.whole else self.mask_BW}
        if self.takes_places:
            inputs["position_ids"] = self.places_B.unsqueeze(1)
        out = self.base(
            input_ids=ids_B.unsqueeze(1), past_key_values=self.cache, use_cache=True, **inputs
        )
        self.places_B = self.places_B + 1
        self.cache = out.past_key_values
        logits: torch.Tensor = out.logits[:, -1]
        return logits


def _prefill(
    model: Any, ids_BT: torch.Tensor, mask_BT: torch.Tensor
) -> tuple[torch.Tensor, Any, torch.Tensor]:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    accepted = inspect.signature(base.forward).parameters
    options: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
    if "position_ids" in accepted:
        options["position_ids"] = (mask_BT.cumsum(1) - 1).clamp(min=0)
    mask = None if bool(mask_BT.all()) else mask_BT
    out = base(input_ids=ids_BT, attention_mask=mask, use_cache=True, **options)
    return out.logits[:, -1], out.past_key_values, mask_BT


class _Rereader:
    """Reads every row from its start for each token: slow, and right for any module."""

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], device: torch.device) -> None:
        self.model, self.device = model, device
        self.rows = [list(prompt) for prompt in prompts]
        self.logits = self._logits()

    def read(self, ids_B: torch.Tensor, keep_B: torch.Tensor | None) -> torch.Tensor:
        """Read a token of each row, of the rows `keep_B` only, and return the next logits."""
        kept = range(len(self.rows)) if keep_B is None else keep_B.tolist()
        ids = ids_B.tolist()
        self.rows = [[*self.rows[i], ids[i]] for i in kept]
        return self._logits()

    def _logits(self) -> torch.Tensor:
        width = max(len(row) for row in self.rows)
        ids = torch.zeros(len(self.rows), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for number, row in enumerate(self.rows):
            ids[number, : len(row)] = torch.tensor(row)
            mask[number, : len(row)] = 1
        last = (mask.sum(1) - 1).to(self.device)
        out = self.model(input_ids=ids.to(self.device), attention_mask=mask.to(self.device))
        logits: torch.Tensor = out.logits[torch.arange(len(last), device=self.device), last]
        return logits


def left_padded(
    rows: Sequence[Sequence[int]], device: torch.device | str = "cpu", pad: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows of token ids as (B, T), padded on the left, and the mask of what is real."""
    width = max(1, max(len(row) for row in rows))
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for number, row in enumerate(rows):
        if row:
            ids[number, width - len(row) :] = torch.tensor(row)
            mask[number, width - len(row) :] = 1
    return ids.to(device), mask.to(device)
