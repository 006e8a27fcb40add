"""What becomes of encoded rows: how many were cut or dropped, and when that is too many."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from llmft.api.errors import DataError
from llmft.api.train_settings import TrainSettings


@dataclass
class EncodingReport:
    """How many rows were cut or dropped, by reason; nothing vanishes without being counted.

    rows: token rows that were made; a conversation may become several. remarks: how often
    something else was met that a person should know. lost: the origins of the rows of each
    reason.
    """

    rows: int = 0
    kept: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    remarks: Counter[str] = field(default_factory=Counter)
    lost: dict[str, list[str]] = field(default_factory=dict)

    def count(self, why: str, origin: str) -> None:
        """Count a row that was cut or dropped; where it came from is kept."""
        self.counts[why] += 1
        self.lost.setdefault(why, []).append(origin)

    def note(self) -> str:
        """Return what a person should know, or '' where every row went in whole."""
        said = []
        if self.counts:
            counts = ", ".join(
                f"{n} {why} ({n / self.rows:.1%})" for why, n in sorted(self.counts.items())
            )
            said.append(f"of {self.rows} rows: {counts}")
        said += [f"{why}: {n:,}" for why, n in sorted(self.remarks.items())]
        return "; ".join(said)

    def refuse_losses(self, settings: TrainSettings) -> None:
        """Raise DataError where more rows are lost than `max_dropped` (E104), or all (E105)."""
        lost = self.rows - self.kept
        if self.rows and not self.kept:
            raise DataError(
                "E105",
                f"no row has a trained-on token left ({self.note()})",
                fix="raise train.max_length, or check the completions",
            )
        if lost > settings.max_dropped * self.rows:
            raise DataError(
                "E104",
                f"{lost} of {self.rows} rows would be dropped ({lost / self.rows:.1%},"
                f" more than max_dropped: {settings.max_dropped:g}): {self.note()}",
                fix="raise train.max_length, or allow it with train.max_dropped",
            )
