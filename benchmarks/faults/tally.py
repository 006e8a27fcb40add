"""Outcomes counted by method and by fault."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ours import Outcome

SHOWN = {"crash": "crash", "full": "disk full", "SIGKILL": "SIGKILL", "damage": "damaged file"}


@dataclass(frozen=True)
class Tally:
    """Every outcome, and how to count it."""

    outcomes: Sequence[Outcome]

    @staticmethod
    def column(outcome: Outcome) -> str:
        """Return the heat map's column: the fault, and what the process was about to do."""
        by_event = outcome.fault in ("crash", "full")
        shown = SHOWN[outcome.fault]
        return f"{shown}: {outcome.event}" if by_event else shown

    @property
    def methods(self) -> list[str]:
        """The rows, as they first came."""
        return list(dict.fromkeys(outcome.method for outcome in self.outcomes))

    @property
    def faults(self) -> list[str]:
        """The columns, sorted by the order of the faults."""
        order = list(SHOWN.values())
        found = {self.column(outcome) for outcome in self.outcomes}
        return sorted(found, key=lambda name: (order.index(name.split(": ")[0]), name))

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
