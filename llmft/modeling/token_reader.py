"""Reads rows on, one token of each at a time, and tells the logits of the next."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from llmft.modeling.growing_cache import give_room
from llmft.modeling.levers import levers_of
from llmft.modeling.replayed_reader import LEAST, ReplayedReader, replays
from llmft.modeling.segments import moved, to_device
from llmft.modeling.sharded_layers import is_sharded


def reader(
    model: Any, prompts: Sequence[Sequence[int]], device: torch.device, most: int = 0
) -> Any:
    """Return what reads tokens: with a cache where the model is known to keep one, else without.

    most: tokens of a row that will be read at most: the cache has room for them. On a GPU, many are
        read by replays of one step.
    """
    peft = getattr(model, "peft_config", None)
    virtual = peft is not None and any(config.is_prompt_learning for config in peft.values())
    wraps = hasattr(model, "prefill") or (peft is not None and not virtual)
    known = wraps or hasattr(type(model), "_supports_sdpa")
    if known and levers_of(model).cached_decoding:  # transformers' own
        read = CachedReader.of(model, prompts, device)
        if read is not None:
            if most > LEAST and replays(device) and not is_sharded(model):
                return ReplayedReader(read, most)
            give_room(read.cache, most)
            return read
    return Rereader(model, prompts, device)


class CachedReader:
    """Reads one more token of each row at a time; keys and values of all before are kept.

    logits: of the next token, (B, V). mask_BW: which columns of the cache are real; whole: all are.
    """

    def __init__(
        self, model: Any, logits_BV: torch.Tensor, cache: Any, mask_BW: torch.Tensor, whole: bool
    ) -> None:
        self.base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.logits, self.cache, self.mask_BW = logits_BV, cache, mask_BW
        self.places_B = mask_BW.sum(1)
        accepted = inspect.signature(self.base.forward).parameters
        self.takes_places = "position_ids" in accepted
        self.whole = whole

    @classmethod
    def of(
        cls, model: Any, prompts: Sequence[Sequence[int]], device: torch.device
    ) -> CachedReader | None:
        """Return a reader that has read the prompts; None where the model cannot keep them."""
        unique: list[Sequence[int]] = []
        owner: list[int] = []
        for prompt in prompts:
            if not unique or prompt != unique[-1]:
                unique.append(prompt)
            owner.append(len(unique) - 1)
        ids_BT, mask_BT = to_device([*left_padded(unique)], device)
        whole = len({len(prompt) for prompt in unique}) == 1  # as the mask says, which is there
        found = (
            model.prefill(ids_BT, mask_BT)
            if hasattr(model, "prefill") and model.enabled  # else its base answers alone
            else _prefill(model, ids_BT, mask_BT, whole)
        )
        if found is None or not hasattr(found[1], "batch_select_indices"):
            return None
        logits, cache, mask = found
        if len(unique) < len(prompts):
            rows = moved(torch.tensor(owner), device)
            cache.batch_select_indices(rows)
            logits, mask = logits[rows], mask[rows]
        return cls(model, logits, cache, mask, whole)

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
    model: Any, ids_BT: torch.Tensor, mask_BT: torch.Tensor, whole: bool
) -> tuple[torch.Tensor, Any, torch.Tensor]:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    accepted = inspect.signature(base.forward).parameters
    options: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
    if "position_ids" in accepted:
        options["position_ids"] = (mask_BT.cumsum(1) - 1).clamp(min=0)
    mask = None if whole else mask_BT
    out = base(input_ids=ids_BT, attention_mask=mask, use_cache=True, **options)
    return out.logits[:, -1], out.past_key_values, mask_BT


class Rereader:
    """Reads every row from its start for each token: slow, and right for any module."""

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], device: torch.device) -> None:
        self.model, self.device = model, device
        self.rows = [list(prompt) for prompt in prompts]
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        # A cache would be filled for nothing, and models of recurrent layers alone fail to.
        self.options = {"use_cache": False} if hasattr(type(base), "_supports_sdpa") else {}
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
        inputs = {"input_ids": ids.to(self.device), "attention_mask": mask.to(self.device)}
        out = self.model(**inputs, **self.options)
        logits: torch.Tensor = out.logits[torch.arange(len(last), device=self.device), last]
        return logits


def left_padded(rows: Sequence[Sequence[int]], pad: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows of token ids as (B, T), padded on the left, and the mask of what is real."""
    width = max(1, max(len(row) for row in rows))
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for number, row in enumerate(rows):
        if row:
            ids[number, width - len(row) :] = torch.tensor(row)
            mask[number, width - len(row) :] = 1
    return ids, mask
