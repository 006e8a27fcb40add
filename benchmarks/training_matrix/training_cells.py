"""The cells of the matrix, and a sample that covers every pair of settings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"r": 4, "lora_alpha": 8},
    "dora": {"r": 4, "lora_alpha": 8},
    "prefix": {"num_virtual_tokens": 3},
    "prompt": {"num_virtual_tokens": 3},
}
WITH_DROPOUT = ("lora", "dora")
"""Those that have a dropout of their own, beside the base's."""
ALIGNMENTS = ("sft", "dpo", "reward", "ppo")


@dataclass(frozen=True)
class Cell:
    """One combination.

    dropout: in the base, as far as its config has one, and in the adapter. padding_free: whether
    rows may be laid end to end (attn_implementation auto), or are padded in any case (eager).
    """

    kind: str
    adapter: str
    alignment: str
    dropout: bool
    padding_free: bool

    def __str__(self) -> str:
        dropout = ", dropout" if self.dropout else ""
        rows = "" if self.padding_free else ", padded rows"
        return f"{self.kind}: {self.adapter} + {self.alignment}{dropout}{rows}"


_AXES = (tuple(ADAPTERS), ALIGNMENTS, (False, True), (True, False))


def of_kind(kind: str) -> list[Cell]:
    """Return the 64 cells of a model type, in a fixed order."""
    return [Cell(kind, *values) for values in product(*_AXES)]


def covering(kinds: Sequence[str]) -> list[Cell]:
    """Return cells that show every pair of values of two axes: four of each model type.

    Of eight types or more; of fewer, each type with every value of every axis.
    """
    return [
        Cell(
            kind,
            adapter,
            ALIGNMENTS[(a + number) % 4],
            dropout=(a + number // 4) % 2 == 1,
            padding_free=(a // 2 + number // 8 + number) % 2 == 0,
        )
        for number, kind in enumerate(kinds)
        for a, adapter in enumerate(ADAPTERS)
    ]


def in_order(kinds: Sequence[str]) -> Iterator[Cell]:
    """Yield every cell: those that cover the pairs first, then the rest, type by type."""
    first = covering(kinds)
    yield from first
    seen = set(first)
    for kind in kinds:
        yield from (cell for cell in of_kind(kind) if cell not in seen)
