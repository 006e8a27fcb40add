"""What an import comes to: findings about single keys, and the verdict of a whole file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from llmft.api.errors import Place

Grade = Literal["same", "none", "speed", "logging", "decide", "cannot"]
"""What a key comes to, from harmless to not possible.

same: it is in the recipe. none: it changes nothing that is trained. speed: it changes speed, memory
or rounding. logging: it changes what is logged, saved or scored on the way. decide: the user has to
say what is meant. cannot: a recipe cannot say it.
"""

Verdict = Literal["same", "same but for speed or logging", "needs your decision", "cannot yet"]
VERDICTS: tuple[Verdict, ...] = (
    "same",
    "same but for speed or logging",
    "needs your decision",
    "cannot yet",
)
_RANK = {"same": 0, "none": 0, "speed": 1, "logging": 1, "decide": 2, "cannot": 3}


@dataclass(frozen=True, slots=True)
class Finding:
    """What is to be said about one key: its name and place, what it comes to, and why.

    said: the key with its value, as written; '' where the file does not state it. missing: in a few
    words, what a recipe lacks or what has to be decided; equal findings of many files share it.
    """

    key: str
    grade: Grade
    why: str
    said: str = ""
    place: Place | None = None
    missing: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the finding as plain data."""
        return {
            "key": self.key,
            "said": self.said or None,
            "line": self.place.line if self.place and self.place.line else None,
            "grade": self.grade,
            "why": self.why,
        }


def verdict_of(findings: Iterable[Finding]) -> Verdict:
    """Return the verdict of the worst finding; 'same' where there is none."""
    return VERDICTS[max((_RANK[finding.grade] for finding in findings), default=0)]


def blocks(finding: Finding) -> bool:
    """Return whether a finding keeps the recipe from being written."""
    return finding.grade in ("decide", "cannot")
