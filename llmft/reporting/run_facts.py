"""What a run's folder tells of it, read from its files alone. Imports no torch."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmft.api.errors import CheckpointError, RecipeError
from llmft.recipes import textfile
from llmft.recipes.yamlfile import parse
from llmft.runs import artifacts
from llmft.runs.locking import NAME as LOCK
from llmft.runs.locking import alive
from llmft.system import fsio
from llmft.system.plain_files import NOT_OURS, read_text, refuse_links_below

TIMELINE = "timeline.json"
_LARGEST = 2**28
_MOST_METRICS = 1000
_STAMP = re.compile(r"(\d{8}-\d{6})")


@dataclass(frozen=True)
class StageFacts:
    """A stage. result: what it wrote of itself; None: it is not finished.

    curves: by metric, the points (step, value) that were logged. samples: what its evaluation kept.
    timeline: what its part of the run's timeline holds: sizes, phases and notes.
    """

    name: str
    recipe: Mapping[str, Any]
    result: Mapping[str, Any] | None
    curves: Mapping[str, list[tuple[float, float]]]
    samples: list[dict[str, Any]]
    timeline: Mapping[str, Any]

    @property
    def work(self) -> str:
        """What the stage does, in words: adapter x alignment, or its task."""
        block = self.recipe
        task = (block.get("task") or {}).get("method")
        adapter = (block.get("adapter") or {}).get("method")
        alignment = (block.get("alignment") or {}).get("method")
        return str(task or (f"{adapter} x {alignment}" if adapter else alignment))


@dataclass(frozen=True)
class RunFacts:
    """A run. state: finished, running, or stopped. started: as its name says, or ''."""

    folder: Path
    name: str
    state: str
    started: str
    recipe: Mapping[str, Any]
    recipe_text: str
    lock: Mapping[str, Any]
    about: Mapping[str, Any]
    stages: tuple[StageFacts, ...]
    timeline: Mapping[str, Any]

    @property
    def seconds(self) -> float | None:
        """How long its processes ran, all together; else how long training took."""
        if (told := self.timeline.get("seconds")) is not None:
            return float(told)
        found = [(s.result or {}).get("metrics", {}).get("train_seconds") for s in self.stages]
        known = [float(value) for value in found if value is not None]
        return math.fsum(known) if known else None

    @property
    def scores(self) -> dict[str, tuple[float | None, float]]:
        """The last finished stage's scores that has any: before, and after training."""
        stage = self._scored
        if stage is None or stage.result is None:
            return {}
        before = stage.result.get("before") or {}
        return {name: (before.get(name), value) for name, value in stage.result["after"].items()}

    @property
    def scored_rows(self) -> str:
        """The SHA-256 of the rows that these scores are of; '' where it is not known."""
        stage = self._scored
        known = (self.lock.get("rows_sha256") or {}).get(stage.name) if stage else None
        return str((known or {}).get("evaluate") or "")

    @property
    def _scored(self) -> StageFacts | None:
        scored = (stage for stage in reversed(self.stages) if (stage.result or {}).get("after"))
        return next(scored, None)


def run_facts(folder: Path, *, whole: bool = True) -> RunFacts:
    """Return what a run's folder tells. whole: with curves and samples.

    Raises CheckpointError (E402) where it is no run's, E401 where a file of it is damaged.
    """
    if not (folder / artifacts.RUN).is_file():
        raise CheckpointError(
            "E402", f"'{folder}' is not a run folder", fix="name a folder that 'llmft run' printed"
        )
    refuse_links_below(folder, NOT_OURS)
    about = fsio.read_json(folder / artifacts.RUN, artifacts.PUT_BACK)
    with fsio.as_a_run_wrote(folder, artifacts.PUT_BACK):
        recipe, text = _recipe(folder)
        timeline = _json(folder / TIMELINE)
        blocks = {block["name"]: block for block in recipe.get("stages", [])}
        stages = tuple(
            _stage(folder, name, blocks.get(name, {}), timeline, whole=whole)
            for name in artifacts.stages_of(folder)
        )
        stamp = _STAMP.match(folder.resolve().name)
        facts = RunFacts(
            folder=folder,
            name=str(about.get("name", folder.parent.name)),
            state=_state(folder, stages, set(blocks)),
            started=time.strftime("%Y-%m-%d %H:%M", time.strptime(stamp[1], "%Y%m%d-%H%M%S"))
            if stamp
            else "",
            recipe=recipe,
            recipe_text=text,
            lock=_json(folder / "lock.json"),
            about=about,
            stages=stages,
            timeline=timeline,
        )
        # Whoever shows a run takes these for granted; here they are still files from elsewhere.
        _ = facts.seconds, [stage.work for stage in stages], [*map(_numbers, _all_scores(stages))]
    return facts


def _all_scores(stages: tuple[StageFacts, ...]) -> Iterator[Mapping[str, Any]]:
    for stage in stages:
        result = stage.result or {}
        for when in ("before", "after"):
            yield result.get(when) or {}
        for scores in (result.get("scores") or {}).values():
            for name, score in scores.items():
                yield {f"{name}, {key}": value for key, value in score.items() if value is not None}


def _numbers(scores: Mapping[str, Any]) -> None:
    for name, value in scores.items():
        if not _is_number(value):
            raise ValueError(f"the score '{name}' is no number")


def _state(folder: Path, stages: tuple[StageFacts, ...], wanted: Set[str]) -> str:
    """Return the state of a run. wanted: the stages of its recipe."""
    # The report is written while the run still holds its lock.
    if wanted and wanted <= {stage.name for stage in stages if stage.result}:
        return "finished"
    if alive(folder / LOCK):
        return "running"
    return "finished" if stages and all(stage.result for stage in stages) else "stopped"


def _recipe(folder: Path) -> tuple[dict[str, Any], str]:
    path = folder / "resolved.yaml"
    if not path.is_file():
        return {}, ""
    try:
        text = textfile.read_text(path)
        tree = parse(text, str(path))
    except RecipeError as error:
        what = f"'{path}' is damaged: {error.faults[0].what}"
        raise CheckpointError("E401", what, fix=artifacts.PUT_BACK) from error
    return tree.data, text


def _stage(
    run: Path, name: str, block: Mapping[str, Any], timeline: Mapping[str, Any], *, whole: bool
) -> StageFacts:
    folder = run / "stages" / name
    result = (folder / artifacts.RESULT).is_file()
    return StageFacts(
        name=name,
        recipe=block,
        result=artifacts.result_of(folder) if result else None,
        curves=_curves(folder / "metrics.jsonl") if whole else {},
        samples=[*_lines(folder / "samples.jsonl")] if whole else [],
        timeline=(timeline.get("stages") or {}).get(name, {}),
    )


def _curves(path: Path) -> dict[str, list[tuple[float, float]]]:
    """Return the points of each metric that was logged in training, by step."""
    found: dict[str, list[tuple[float, float]]] = {}
    for entry in _lines(path):
        if entry.get("phase") != "train":
            continue
        for name, value in entry.items():
            if name not in ("step", "stage", "phase") and _is_number(value):
                found.setdefault(name, []).append((float(entry["step"]), float(value)))
        if len(found) > _MOST_METRICS:
            raise ValueError(f"more than {_MOST_METRICS:,} metrics")
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    for line in read_text(path, _LARGEST).split("\n"):
        try:
            found = json.loads(line)
        except ValueError:  # torn by a kill
            continue
        if isinstance(found, dict):
            yield found


def _json(path: Path) -> dict[str, Any]:
    return fsio.read_json(path, artifacts.PUT_BACK) if path.is_file() else {}
