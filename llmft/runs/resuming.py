"""Going on with a run that stopped: which run it is, what is finished, and what has changed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmft.api import StageResult
from llmft.api.errors import CheckpointError, Fault
from llmft.api.train_settings import TrainSettings
from llmft.recipes.job import Job
from llmft.recipes.recipe import Recipe
from llmft.runs import artifacts
from llmft.runs.edits import ROWS_PER_STEP, Edit, edits_between
from llmft.system import fsio
from llmft.system.launcher import launch
from llmft.training.checkpoints import FOLDER as CHECKPOINTS


@dataclass(frozen=True)
class PreviousRun:
    """What a run folder holds already: results of its finished stages, and edits since."""

    results: Mapping[str, StageResult]
    edits: tuple[Edit, ...]
    finished: bool


def newest_run(job: Job) -> Path:
    """Return the newest unfinished run of the recipe's name, else the newest finished one."""
    parent = Path(job.recipe.output_dir) / job.recipe.name
    runs = sorted((path.parent for path in parent.glob("*/run.json")), key=_age, reverse=True)
    if not runs:
        raise CheckpointError(
            "E402", f"there is no run in '{parent}' to resume", fix="start a run without --resume"
        )
    return next((run for run in runs if not _is_finished(run)), runs[0]).resolve()


def unfinished_run(job: Job) -> Path | None:
    """Return the newest unfinished run of the recipe's name; None where there is none."""
    parent = Path(job.recipe.output_dir) / job.recipe.name
    runs = sorted((path.parent for path in parent.glob("*/run.json")), key=_age, reverse=True)
    found = next((run for run in runs if not _is_finished(run)), None)
    return found.resolve() if found else None


def examine(job: Job, folder: Path, first: str | None = None) -> PreviousRun:
    """Return what a run folder holds, after checking that the recipe is still the run's.

    first: the stage from which on all run again, so that what they made need not be whole.
    Raises CheckpointError where it is no run's, where a file of it or a finished stage is damaged,
    and with every edit that cannot be taken over.
    """
    if not (folder / "run.json").is_file():
        raise CheckpointError(
            "E402", f"'{folder}' is not a run folder", fix="name a folder that 'llmft run' printed"
        )
    with fsio.as_a_run_wrote(folder, artifacts.PUT_BACK):
        found = {stage: _result(folder, stage) for stage in _stages(folder)}
    results = {stage: result for stage, result in found.items() if result is not None}
    resolved = folder / "resolved.yaml"
    if not resolved.is_file():
        raise CheckpointError("E401", f"'{resolved}' is missing", fix=artifacts.PUT_BACK)
    recipe = job.load(resolved).recipe
    processes = _processes(folder)
    edits = [_weighed(e, recipe, job.recipe, processes) for e in edits_between(recipe, job.recipe)]
    trained = {s for s in _stages(folder) if s not in results and _has_checkpoint(folder, s)}
    refused = [fault for edit in edits if (fault := _refusal(job, edit, trained))]
    again = _from(job, first)
    refused += _other_steps(job, recipe, edits, processes, (trained | results.keys()) - again)
    if refused:
        raise CheckpointError.of(refused)
    for stage in results.keys() - again:
        artifacts.verify_stage(folder / "stages" / stage)
    same = not any(edit.kind != "allowed" for edit in edits)
    return PreviousRun(results, tuple(edits), same and len(results) == len(recipe.stages))


def _from(job: Job, first: str | None) -> set[str]:
    """Return the stages that run again because they were asked for by `--from`."""
    names = [stage.name for stage in job.recipe.stages]
    return set(names[names.index(first) :]) if first else set()


def _processes(folder: Path) -> int:
    """Return how many processes the run was in when it last went on."""
    lock = fsio.read_json(folder / "lock.json", artifacts.PUT_BACK)
    with fsio.as_a_run_wrote(folder, artifacts.PUT_BACK):
        return int(lock.get("processes", 1))


def _weighed(edit: Edit, before: Recipe, after: Recipe, processes: int) -> Edit:
    """Return an edit of how the rows of a step are said, marked as harmless where they are kept."""
    if not edit.stage or edit.key[-1] not in ROWS_PER_STEP:
        return edit
    then = _train(before, edit.stage).rows_per_step(processes)
    return replace(edit, harmless=then == _train(after, edit.stage).rows_per_step(launch().count))


def _other_steps(
    job: Job, before: Recipe, edits: Sequence[Edit], processes: int, stages: Set[str]
) -> Iterator[Fault]:
    """Yield a fault for each stage whose steps had other rows in the number of processes then."""
    names = (*ROWS_PER_STEP, "per_device_train_batch_size")
    edited = {edit.stage for edit in edits if edit.key[-1] in names and not edit.harmless}
    count = launch().count
    for number, stage in enumerate(job.recipe.stages):
        if stage.name not in stages - edited or stage.task:
            continue
        then = _train(before, stage.name).rows_per_step(processes)
        now = stage.train.rows_per_step(count)
        if then != now:
            yield job.fault(
                "E404",
                ("stages", number, "train"),
                f"a step of '{stage.name}' had {then} rows in {_in_words(processes)}, and would"
                f" have {now} in {_in_words(count)}",
                f"launch {_in_words(processes)} again, or set train.train_batch_size: {then}",
            )


def _train(recipe: Recipe, name: str) -> TrainSettings:
    return next(stage.train for stage in recipe.stages if stage.name == name)


def _in_words(processes: int) -> str:
    return f"{processes} process" + "es" * (processes > 1)


def _refusal(job: Job, edit: Edit, trained: Set[str]) -> Fault | None:
    """Return why an edit cannot be taken over. trained: stages stopped at a checkpoint.

    A stage that is finished runs again with the edit, and one that has not begun runs with it.
    """
    key = ("stages", job.index_of(edit.stage), *edit.key[2:]) if edit.stage else edit.key
    if edit.stage and edit.key[2:] == ("train", "bf16") and job.says_auto(edit.stage):
        then, now = ("true" if value is True else "false" for value in (edit.before, edit.after))
        what = f"the run computes with bf16: {then}, and auto gives {now} on this machine"
        return job.fault("E237", key, what, f"write bf16: {then}, which this machine can do, too")
    if edit.kind != "refused" or (edit.stage and edit.stage not in trained):
        return None
    what = f"the run started with another value, and cannot continue with this one ({edit})"
    fix = "restore the old value, or start a new run without --resume"
    return job.fault("E404", key, what, fix)


def clear_unfinished(place: Path) -> None:
    """Take away what a stage that was killed left half-published in its folder."""
    fsio.sweep_staging(place)
    if (place / artifacts.ADAPTER).is_dir():
        fsio.remove_folder(place / artifacts.ADAPTER)


def trim_metrics(place: Path, step: int, evaluated: int = 0) -> None:
    """Drop the lines of a stage's metrics.jsonl that the resumed stage will write again.

    step: up to which it has trained. evaluated: up to which it has been scored during training.
    """
    path = place / "metrics.jsonl"
    if not path.is_file():
        return
    lines = path.read_text("utf-8", errors="replace").removesuffix("\n").split("\n")
    kept = [line for line in lines if _stays(line, step, evaluated)]
    fsio.write_text(path, "".join(f"{line}\n" for line in kept))


def _stays(line: str, step: int, evaluated: int) -> bool:
    try:
        entry = json.loads(line)
        last = {"train": step, "score": evaluated}.get(entry.get("phase", ""), -1)
        return bool(entry.get("step", 0) <= last)
    except (ValueError, RecursionError, TypeError, AttributeError):  # torn by a kill, or not ours
        return False


def changed_environment(
    before: Mapping[str, Any], now: Mapping[str, Any], *, accept_plugins: bool = False
) -> list[str]:
    """Return in what two locks differ such that the bits may, though the recipe is the same.

    accept_plugins: go on though a plugin's code of one version is another.
    Raises CheckpointError where the base model, or a plugin's code of one version, is another.
    """
    for name in {**before["model"]["sha256"], **now["model"]["sha256"]}:
        if before["model"]["sha256"].get(name) != now["model"]["sha256"].get(name):
            raise CheckpointError(
                "E405",
                f"'{name}' of the model '{now['model']['path']}' is not the one that the run"
                " started with",
                fix="restore the model, or start a new run",
            )
    kept, found = before.get("adapters", {}), now.get("adapters", {})
    for asked in kept:
        if found.get(asked, kept[asked]) != kept[asked]:
            what = f"the adapter 'peft:{asked}' is not the one that the run started with"
            raise CheckpointError("E405", what, fix="restore its files, or start a new run")
    kept, found = before.get("other_models", {}), now.get("other_models", {})
    for path in kept:
        if found.get(path, kept[path]) != kept[path]:
            what = f"the model '{path}' is not the one that the run started with"
            raise CheckpointError("E405", what, fix="restore its files, or start a new run")
    told = ("llmft", "python", "processor", "device", "torch_threads", "torch_build")
    pairs = [(name, before[name], now[name]) for name in told]
    pairs += [(n, before["packages"].get(n), version) for n, version in now["packages"].items()]
    pairs.append(("processes", before.get("processes", 1), now.get("processes", 1)))
    for stage, kept in before.get("numerics", {}).items():
        found = now.get("numerics", {}).get(stage, {}).get("float32", {})
        products = kept.get("float32", {})
        pairs += [(f"float32 {op} of '{stage}'", products.get(op), found[op]) for op in found]
    if "code" in before:  # of a run that another version of llmft began, the version tells
        pairs.append(("llmft's own code", before["code"][:8], now["code"][:8]))
    plugins = {(p["kind"], p["method"]): p for p in before["plugins"]}
    for plugin in now["plugins"]:
        old = plugins.get((plugin["kind"], plugin["method"]), plugin)
        name = f"{plugin['kind']} {plugin['method']}"
        pairs.append((name, old["version"], plugin["version"]))
        if old["version"] == plugin["version"] and old["sha256"] != plugin["sha256"]:
            if accept_plugins:
                pairs.append((f"code of the {name}", old["sha256"][:8], plugin["sha256"][:8]))
                continue
            raise CheckpointError(
                "E405",
                f"the code of the {plugin['kind']} '{plugin['method']}' ({plugin['distribution']})"
                " has changed since the run started",
                fix="install the old version, start a new run, or continue with the new code:"
                " --accept-plugin-change",
            )
    return [f"{name} {old} -> {new}" for name, old, new in pairs if old != new]


def _age(run: Path) -> tuple[str, int]:
    """Return what sorts run folders by when they were made: `<date>-<time>[-<attempt>]-<hash>`."""
    parts = run.name.split("-")
    return "-".join(parts[:2]), int(parts[2]) if len(parts) > 3 and parts[2].isdecimal() else 1


def _stages(folder: Path) -> list[str]:
    return artifacts.stages_of(folder)


def _is_finished(folder: Path) -> bool:
    return all(_result(folder, stage) is not None for stage in _stages(folder))


def _has_checkpoint(folder: Path, stage: str) -> bool:
    return any((folder / "stages" / stage / CHECKPOINTS).glob("step-*"))


def _result(folder: Path, stage: str) -> StageResult | None:
    path = folder / "stages" / stage / artifacts.RESULT
    if not path.is_file():
        return None
    facts = fsio.read_json(path, "remove it, and the stage continues from its last checkpoint")
    names = StageResult.__dataclass_fields__
    return StageResult(**{name: value for name, value in facts.items() if name in names})
