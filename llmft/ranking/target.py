"""Where the samples are: a file, or the stage of a run that waits for people."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmft.api.errors import CheckpointError, DataError, TrustError
from llmft.ranking.samples import RATINGS
from llmft.runs import artifacts
from llmft.system.plain_files import NOT_OURS, read_text, refuse_links_below

WAITING = "waiting.json"
SAMPLES = "rows.jsonl"


@dataclass(frozen=True, slots=True)
class Target:
    """A samples file, and the command that goes on with its run once it is ranked, or ''.

    raters: how many people the run waits for; 0 where none waits.
    """

    samples: Path
    go_on: str = ""
    raters: int = 0

    @property
    def ratings(self) -> Path:
        """The folder with the raters' files."""
        return self.samples.parent / RATINGS


def find_target(name: str) -> Target:
    """Return what a run folder, a stage's folder or a samples file leads to.

    In a run it is what a waiting stage names in `waiting.json` (`samples`: a path from the stage's
    folder or from the run's, and maybe `raters`: how many people); else the newest `rows.jsonl`
    with completions.
    """
    found = _found(name)
    stage = found.samples.parent
    if Path(name).is_dir() and (stage / artifacts.RESULT).is_file():
        artifacts.verify_as_read(stage)
    return found


def _found(name: str) -> Target:
    path = Path(name)
    if not path.is_dir():
        if not path.exists():
            what = f"there is no run folder and no file '{name}'"
            raise DataError("E107", what, fix="check the path")
        return Target(path)
    refuse_links_below(path, NOT_OURS)
    if (path / SAMPLES).is_file():
        return Target(path / SAMPLES)
    waiting = _newest(path, WAITING)
    if waiting:
        return _waited_for(path, waiting[0])
    for rows in _newest(path, SAMPLES):
        if _has_completions(rows):
            return Target(rows)
    what = f"'{name}' holds no collected answers"
    raise CheckpointError("E402", what, fix="name a run whose recipe collects answers, or a file")


def _newest(run: Path, name: str) -> list[Path]:
    found = run.glob(f"stages/*/{name}")
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)


def _waited_for(run: Path, waiting: Path) -> Target:
    try:
        told: Any = json.loads(read_text(waiting, 2**20))
        where, raters = told["samples"], told.get("raters", 1)
        if not isinstance(where, str) or type(raters) is not int:
            raise TypeError("of the wrong type")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError("E401", f"'{waiting}' does not say what to rank") from error
    for folder in (waiting.parent, run):
        rows = folder / where
        if rows.is_file():
            if not _of_a_run(rows.resolve(), run.resolve()):
                raise TrustError("E603", f"'{waiting}' is outside the run folder: '{where}'")
            return Target(rows, _resume_command(run), raters)
    raise CheckpointError("E401", f"'{waiting}' names '{where}', which is not there")


def _resume_command(run: Path) -> str:
    """Return what a person types to go on with a run: made here, never read from its files."""
    recipe = run / "resolved.yaml"  # with what --set changed
    if not recipe.is_file() or _is_smoke(run):
        return ""
    return shlex.join(["llmft", "run", str(recipe), str(run), "--resume"])


def _is_smoke(run: Path) -> bool:
    """Return whether a run was one in small, which is not gone on with."""
    try:
        told = json.loads(read_text(run / artifacts.RUN, 2**28))
    except (OSError, ValueError):
        return False
    return isinstance(told, dict) and bool(told.get("smoke"))


def _of_a_run(rows: Path, run: Path) -> bool:
    """Return whether a file is in the run, or a stage's of another run under its output_dir."""
    if rows.is_relative_to(run):
        return True
    above = [*rows.parents]
    a_stages = rows.name == SAMPLES and len(above) > 4 and above[1].name == "stages"
    return a_stages and (above[2] / "run.json").is_file() and above[4] == run.parent.parent


def _has_completions(rows: Path) -> bool:
    with rows.open("rb") as file:
        try:
            first = json.loads(file.readline(2**26))
        except (ValueError, RecursionError):
            return False
    return isinstance(first, dict) and isinstance(first.get("completions"), list)
