"""Outcomes counted by method and by fault."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from cells import BETWEEN_STAGES, IN_PPO
from ours import Outcome

SHOWN = {
    "crash": "crash", "full": "disk full", "SIGKILL": "SIGKILL at a random time",
    "place": "SIGKILL at a place", "damage": "damaged file",
}  # fmt: skip
"""The rows of the table."""
HEADS = SHOWN | {"SIGKILL": "SIGKILL", "place": "SIGKILL"}
"""What the heat map's columns begin with."""


@dataclass(frozen=True)
class Tally:
    """Every outcome, and how to count it."""

    outcomes: Sequence[Outcome]

    @staticmethod
    def column(outcome: Outcome) -> str:
        """Return the heat map's column: the fault, and what the process was about to do."""
        head = HEADS[outcome.fault]
        return head if outcome.fault == "damage" else f"{head}: {outcome.event}"

    @property
    def methods(self) -> list[str]:
        """The rows, as they first came."""
        return list(dict.fromkeys(outcome.method for outcome in self.outcomes))

    @property
    def faults(self) -> list[str]:
        """The columns, sorted by the order of the faults, and of the places in a run."""
        faults, places = list(SHOWN), list(BETWEEN_STAGES | IN_PPO)
        found = {self.column(o): (faults.index(o.fault), o.event) for o in self.outcomes}

        def order(column: str) -> tuple[int, int, str]:
            fault, event = found[column]
            return fault, places.index(event) if event in places else 0, event

        return sorted(found, key=order)

    def cell(self, method: str, fault: str) -> tuple[int, int]:
        """Return how many ended bit-exactly, and how many there were."""
        here = [o for o in self.outcomes if o.method == method and self.column(o) == fault]
        return sum(o.result == "exact" for o in here), len(here)

    def by_fault(self, fault: str, raw: bool) -> Counter[str]:
        """Return what came of one kind of fault, with llmft's methods or with the raw loop."""
        return Counter(
            outcome.result
            for outcome in self.outcomes
            if outcome.fault == fault and outcome.method.startswith("raw") == raw
        )
