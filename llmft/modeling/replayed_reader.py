"""Tokens read by replaying one recorded step, which spares a GPU the wait for each kernel's start.

A step of one token is some thousand short kernels; the host starts them more slowly than a GPU is
done with them. So a step is recorded once as a CUDA graph, over keys and values in tensors of their
final size, and replayed for each token. A recording is used only if its first replay gives the
logits that the model gave for the same token without it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer, StaticLayer

from llmft.modeling.growing_cache import give_room
from llmft.modeling.segments import moved

log = logging.getLogger("llmft")

LEAST = 16
"""Tokens still to be read for which a recording pays: it takes as long as some four of them."""

_OFF = {torch.float32: 1e-3, torch.bfloat16: 4e-2, torch.float16: 1e-2}
"""How far a replay's logits may be off, as a share of their length: kernels round otherwise."""


class ReplayedReader:
    """Reads one more token of each row at a time, as the CachedReader does that it begins with.

    most: tokens that will be read at most. logits: of the next token, (B, V). record: how a step
    is recorded; `by_graph`, but for tests.
    """

    def __init__(self, begun: Any, most: int, record: Any = None) -> None:
        self.begun, self.left = begun, most
        self.logits = begun.logits
        self.record = record or by_graph
        self.tried = False
        self.step: _Step | None = None
        self.rows_B = torch.arange(len(begun.logits), device=begun.logits.device)

    def read(self, ids_B: torch.Tensor, keep_B: torch.Tensor | None) -> torch.Tensor:
        """Read a token of each row, of the rows `keep_B` only, and return the next logits."""
        self.left -= 1
        if self.step is None:
            logits: torch.Tensor = self.begun.read(ids_B, keep_B)
            if not self.tried and self.left >= LEAST:
                self.tried = True
                self.step = recorded(self.begun, self.left, logits, ids_B, keep_B, self.record)
                if self.step is None:
                    give_room(self.begun.cache, self.left)
            self.rows_B = torch.arange(len(logits), device=logits.device)
            return logits
        step, self.rows_B = self.step, _kept(self.rows_B, keep_B)
        # Rows that have ended are read on until they are half of all.
        if 2 * len(self.rows_B) <= len(step.ids_B1) and self.left >= 2 * LEAST:
            fewer = _tried(partial(step.of_rows, self.rows_B, self.left + 1))
            if fewer is not None:
                self.step = step = fewer
                self.rows_B = torch.arange(len(self.rows_B), device=ids_B.device)
        return step(_kept(ids_B, keep_B), self.rows_B)


def _kept(of_B: torch.Tensor, keep_B: torch.Tensor | None) -> torch.Tensor:
    return of_B if keep_B is None else of_B[keep_B]


def recorded(
    begun: Any,
    left: int,
    logits_BV: torch.Tensor,
    ids_B: torch.Tensor,
    keep_B: torch.Tensor | None,
    record: Any,
) -> _Step | None:
    """Return a step after what `begun` has read; None where it cannot be had, or is not right.

    left: tokens that are still to be read. ids_B, keep_B, logits_BV: the last token of each row,
    and what the model said after it, which the step has to say too.
    """
    layers = getattr(begun.cache, "layers", None)
    if not layers or type(begun.cache).__name__ != "DynamicCache":
        return None
    length = begun.mask_BW.shape[1]
    if not all(_is_whole(layer, length, left) for layer in layers):
        return None
    keys = [(layer.keys, layer.values) for layer in layers]
    last_B, places_B = _kept(ids_B, keep_B), begun.places_B - 1
    step = _tried(partial(_Step, begun, keys, last_B, begun.mask_BW, places_B, left, record))
    if step is None:
        return None
    off = (step.first.float() - logits_BV.float()).norm() / logits_BV.float().norm()
    if not float(off) <= _OFF.get(logits_BV.dtype, 0.0):
        log.debug("tokens are read without a recorded step: its logits are off by %.2g", off)
        return None
    begun.cache = None
    return step


def _tried(make: Callable[[], _Step]) -> _Step | None:
    """Return the step; None where it cannot be recorded, or there is no memory for it."""
    try:
        return make()
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
        log.debug("tokens are read without a recorded step: %s", error)
        return None


def _is_whole(layer: Any, length: int, left: int) -> bool:
    """Return whether a layer holds all that was read, and may hold all that will be."""
    if type(layer) is DynamicSlidingWindowLayer:
        return bool(length + left < layer.sliding_window) and layer.keys.shape[2] == length
    return type(layer) is DynamicLayer and layer.is_initialized and layer.keys.shape[2] == length


class _Step:
    """A token of each of B rows read by one recorded step; `first`: the logits of its first replay.

    kept: keys and values of each layer, (B, H, W, D), the last token's too, which is read again.
    mask_BW: which of the W columns are real. places_B: the last token's position in its row.
    left: tokens that are to be read after that one.
    """

    def __init__(
        self,
        begun: Any,
        kept: list[tuple[torch.Tensor, torch.Tensor]],
        ids_B: torch.Tensor,
        mask_BW: torch.Tensor,
        places_B: torch.Tensor,
        left: int,
        record: Any,
    ) -> None:
        self.begun, self.record_with = begun, record
        length = mask_BW.shape[1]
        width = -(-(length + left) // 8) * 8  # attention's kernels read masks by eight
        self.at = moved(torch.tensor([length - 1]), ids_B.device)
        self.cache = Cache(layers=[_Columns(*pair, width, self.at) for pair in kept])
        self.ids_B1 = ids_B.unsqueeze(1).clone()
        self.places_B1 = places_B.unsqueeze(1).clone()
        self.real_BW = torch.nn.functional.pad(mask_BW.bool(), (0, width - length))
        self.logits: torch.Tensor | None = None
        state = [self.at, self.places_B1]  # what a step changes, and is put back once it was tried
        before = [each.clone() for each in state]

        def again() -> None:
            for each, old in zip(state, before, strict=True):
                each.copy_(old)

        self.replay = record(self._run, again)
        self.replay()
        assert self.logits is not None
        self.first: torch.Tensor = self.logits

    def __call__(self, ids_B: torch.Tensor, rows_B: torch.Tensor) -> torch.Tensor:
        """Read a token of each row in `rows_B` (which of the B), and return the next logits."""
        self.ids_B1.index_copy_(0, rows_B, ids_B.unsqueeze(1))
        self.replay()
        assert self.logits is not None
        return self.logits[rows_B]

    def of_rows(self, rows_B: torch.Tensor, left: int) -> _Step:
        """Return a step of these rows only, recorded anew."""
        length = int(self.at)
        kept = [
            (layer.keys[rows_B, :, :length], layer.values[rows_B, :, :length])
            for layer in self.cache.layers
        ]
        return _Step(
            self.begun, kept, self.ids_B1[rows_B, 0], self.real_BW[rows_B, :length].long(),
            self.places_B1[rows_B, 0] - 1, left, self.record_with,
        )  # fmt: skip

    def _run(self) -> None:
        """Read a token of each row at the next column, and write the logits."""
        self.real_BW.index_fill_(1, self.at, True)
        mask = self.real_BW[:, None, None, :]
        base = self.begun.base
        if base.config._attn_implementation != "sdpa":
            mask = torch.zeros_like(mask, dtype=base.dtype).masked_fill_(
                ~mask, torch.finfo(base.dtype).min
            )
        inputs: dict[str, Any] = {"attention_mask": mask}
        if self.begun.takes_places:
            inputs["position_ids"] = self.places_B1
        out = base(input_ids=self.ids_B1, past_key_values=self.cache, use_cache=True, **inputs)
        if self.logits is None:
            self.logits = out.logits[:, -1].clone()
        else:
            self.logits.copy_(out.logits[:, -1])
        self.at.add_(1)
        self.places_B1.add_(1)


class _Columns(StaticLayer):  # type: ignore[misc]
    """Keys and values in tensors of their final size; all layers write at the same column."""

    def __init__(
        self, keys: torch.Tensor, values: torch.Tensor, width: int, at: torch.Tensor
    ) -> None:
        super().__init__(max_cache_len=width)
        self.at = at
        self.keys, self.values = (
            torch.nn.functional.pad(each, (0, 0, 0, width - each.shape[2]))
            for each in (keys, values)
        )
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.keys.index_copy_(2, self.at, key_states)
        self.values.index_copy_(2, self.at, value_states)
        return self.keys, self.values

    def get_seq_length(self) -> Any:
        return self.at


def replays(device: torch.device) -> bool:
    """Return whether steps can be recorded on a device."""
    return device.type == "cuda" and torch.version.cuda is not None


def by_graph(run: Any, again: Any) -> Any:
    """Return what replays `run`, recorded as a CUDA graph; `again` puts its state back."""
    side: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side), _casts_within():
        run()  # libraries make room, and choose kernels, at the first call
    torch.cuda.current_stream().wait_stream(side)
    again()
    graph = torch.cuda.CUDAGraph()
    # Other threads may make room meanwhile, such as for the next batch.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"), _casts_within():
        run()
    return graph.replay


def _casts_within() -> AbstractContextManager[Any]:
    """Return a block in which autocast keeps no cast for later, where a recording would miss it."""
    if not torch.is_autocast_enabled("cuda"):
        return nullcontext()
    dtype = torch.get_autocast_dtype("cuda")
    return torch.autocast("cuda", dtype=dtype, cache_enabled=False)
