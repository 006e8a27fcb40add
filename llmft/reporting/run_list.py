"""The runs under a folder: what each is, how far it came, and what it scored. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from llmft.api.errors import LlmftError, RecipeError
from llmft.reporting.run_facts import RunFacts, run_facts

STATES = ("finished", "running", "stopped", "damaged")
_LOWER_IS_BETTER = ("loss", "perplexity")


@dataclass(frozen=True)
class Listed:
    """A run, or why it cannot be read."""

    folder: Path
    facts: RunFacts | None
    fault: str = ""

    @property
    def name(self) -> str:
        """The recipe's name."""
        return self.facts.name if self.facts else self.folder.parent.name

    @property
    def state(self) -> str:
        """One of STATES."""
        return self.facts.state if self.facts else "damaged"

    @property
    def started(self) -> str:
        """When it began, as its folder says."""
        return self.facts.started if self.facts else ""

    def score(self, metric: str) -> float | None:
        """Return the last score of that name; None where it has none."""
        found = self.facts.scores.get(metric) if self.facts else None
        return found[1] if found else None


def runs_under(
    place: Path, *, name: str = "*", state: str | None = None, sort: str = "date"
) -> list[Listed]:
    """Return the runs under a folder: of one recipe, of many, or the run that it is itself.

    name: a pattern of recipes' names. state: only those. sort: `date` (newest first), `name`,
    `time`, or a metric (best first: of loss and perplexity the lowest).
    Raises RecipeError where there is no such folder, or no run has that metric.
    """
    if not place.is_dir():
        fix = "name the folder that holds runs; a recipe's output_dir, by default 'runs'"
        raise RecipeError("E090", f"there is no folder '{place}'", fix=fix)
    found = [_listed(folder) for folder in run_folders(place)]
    found = [run for run in found if fnmatchcase(run.name, name) and state in (None, run.state)]
    return _sorted(found, sort)


def run_folders(place: Path) -> list[Path]:
    """Return the folders of runs under a folder, as `runs_under` looks for them.

    A folder that has none itself may have a folder `runs`, where recipes write theirs.
    """
    patterns = ("run.json", "*/run.json", "*/*/run.json")
    files = {p for pattern in patterns for p in place.glob(pattern)}
    files = files or set(place.glob("runs/*/*/run.json"))
    return [path.parent for path in sorted(files)]


def _listed(folder: Path) -> Listed:
    try:
        return Listed(folder, run_facts(folder, whole=False))
    except LlmftError as error:
        return Listed(folder, None, error.faults[0].what)


def _sorted(found: list[Listed], sort: str) -> list[Listed]:
    if sort == "date":
        return sorted(found, key=lambda run: run.folder.resolve().name, reverse=True)
    if sort == "name":
        return sorted(found, key=lambda run: (run.name, run.folder.name))
    if sort == "time":
        return sorted(found, key=lambda run: -((run.facts.seconds if run.facts else None) or 0.0))
    if not found:
        return []
    known = {metric for run in found if run.facts for metric in run.facts.scores}
    if sort not in known:
        raise RecipeError(
            "E090",
            f"no run here has the score '{sort}'",
            fix=f"sort by date, name, time or one of: {', '.join(sorted(known)) or 'no score'}",
        )
    sign = 1.0 if sort in _LOWER_IS_BETTER else -1.0
    worst = float("inf")

    def place(run: Listed) -> float:
        score = run.score(sort)
        return worst if score is None else sign * score

    return sorted(found, key=place)
