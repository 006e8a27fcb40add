"""Which finished stages of a run still stand, told by a hash of all that went into each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from llmft.data.encoding import Encoder
from llmft.data.stage_rows import row_digests, stage_rows
from llmft.modeling.base_model import BaseModel
from llmft.recipes.job import Job
from llmft.recipes.metrics import chosen_metrics
from llmft.recipes.other_models import models_of, name_of
from llmft.recipes.recipe import Recipe, Stage
from llmft.recipes.references import stages_read
from llmft.runs import artifacts
from llmft.runs.edits import ROWS_PER_STEP, kind_of
from llmft.runs.upstream import dataset_in
from llmft.system import fsio
from llmft.system.launcher import launch
from llmft.training.checkpoints import FOLDER as CHECKPOINTS
from llmft.training.checkpoints import newest_carried

REPLACED = "replaced"


def stage_fingerprint(
    recipe: Recipe, stage: Stage, provenance: Mapping[str, Any], run: Path, rows: Mapping[str, str]
) -> str:
    """Return the SHA-256 of a stage's settings, model, rows, plugins, seed, and stages it reads.

    Settings that change nothing about what is made, such as how often it is saved, are left out.
    provenance: what the run stands on, as in its lock. rows: the SHA-256 of the stage's rows.
    Raises CheckpointError where a run's lock is not as a run writes it.
    """
    with fsio.as_a_run_wrote(run, artifacts.PUT_BACK):
        return _fingerprint(recipe, stage, provenance, run, rows)


def _fingerprint(
    recipe: Recipe, stage: Stage, provenance: Mapping[str, Any], run: Path, rows: Mapping[str, str]
) -> str:
    whole = {
        "stage": _settings(stage),
        "model": [recipe.model.model_dump(mode="json"), provenance["model"]["sha256"]],
        "seed": recipe.seed,
        "cross_cutting": recipe.plugins,
        "plugins": sorted(_versions(stage, provenance)),
        "rows": dict(rows),
        "reads": reads(stage, run),
    }
    if stage.peft_start is not None:
        whole["start"] = provenance["adapters"][stage.peft_start]
    if others := [name_of(asked) for _, asked in models_of(stage)]:
        whole["other_models"] = [provenance["other_models"][name] for name in others]
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def reads(stage: Stage, run: Path) -> dict[str, str]:
    """Return the identity of each stage that a stage reads, by name."""
    return {name: recorded(run, name) for name in sorted(set(stages_read(stage)))}


def recorded(run: Path, stage: str) -> str:
    """Return the identity that a finished stage was made with; '' where it has none."""
    path = run / "stages" / stage / artifacts.RESULT
    if not path.is_file():
        return stage  # a stage of an earlier run: its id names it
    facts = fsio.read_json(path, artifacts.PUT_BACK)
    return str(facts.get("fingerprint", ""))


def why_restarts(
    run: Path, stage: str, reads: Mapping[str, str], remade: Set[str], asked: bool
) -> str:
    """Return why a stage that stopped at a checkpoint does not go on from it; '' where it does.

    reads: the identities of the stages it reads. remade: stages that have run again just now.
    asked: whether the stage is to run again in any case.
    """
    carried = newest_carried(run / "stages" / stage / CHECKPOINTS)
    if not carried:
        return ""
    if carried.get("reads", reads) != reads or remade & reads.keys():
        return "because a stage that it reads has run again"
    return "as asked" if asked else ""


def all_unchanged(job: Job, run: Path) -> bool:
    """Return whether each stage of a finished run is what it would be if it were made now.

    Raises the error of the data where rows cannot be read any more.
    """
    provenance = fsio.read_json(run / "lock.json", artifacts.PUT_BACK)

    def encoder() -> Encoder:
        return BaseModel(job.recipe.model).encoder()

    for bound in job.stages:
        dataset = dataset_in(bound, run)
        rows = stage_rows(bound.spec, dataset, job.recipe.seed, encoder) if dataset else None
        digests = (row_digests(*rows) if rows else {}) | bound.reads()
        now = stage_fingerprint(job.recipe, bound.spec, provenance, run, digests)
        if now != recorded(run, bound.name):
            return False
    return True


def set_aside(run: Path, stage: str) -> Path:
    """Move a finished stage that runs again out of the way, and return where it is now."""
    place = free_place(run, stage)
    with fsio.disk_errors(place):
        place.parent.mkdir(exist_ok=True)
        (run / "stages" / stage).rename(place)
        fsio.sync_folder(place.parent)
        fsio.sync_folder(run / "stages")
    return place


def free_place(run: Path, stage: str) -> Path:
    """Return a folder that is not there yet, for what a stage has made before."""
    number = 1
    while (place := run / REPLACED / f"{stage}-{number}").exists():
        number += 1
    return place


def _settings(stage: Stage) -> dict[str, Any]:
    block = stage.model_dump(mode="json")
    if not stage.plugins:  # as stages were before they had any
        del block["plugins"]
    block["train"] = {
        key: value
        for key, value in block["train"].items()
        if kind_of(("stages", 0, "train", key)) != "allowed" and key not in ROWS_PER_STEP
    }
    # However these are dealt out to processes and passes.
    count = 1 if stage.task else launch().count
    block["train"]["rows_per_step"] = stage.train.rows_per_step(count)
    return block


def _versions(stage: Stage, provenance: Mapping[str, Any]) -> list[str]:
    """Return the distribution and version of each method that a stage's settings name.

    Of a file of the user's own code, its SHA-256.
    """
    methods = set(_methods(stage.model_dump(mode="json")))
    named = [("metric", one) for one in chosen_metrics(stage.metrics, ()) if isinstance(one, str)]
    return [
        f"{p['kind']} {p['method']} {p['distribution']} {p['version']}"
        for p in provenance["plugins"]
        if p["kind"] not in ("tracker", "file")
        and (
            {p["method"], f"{p['distribution']}:{p['method']}"} & methods
            or (p["kind"], p["method"]) in named
        )
    ] + [f"file {p['sha256']}" for p in provenance["plugins"] if stage.name in p.get("stages", ())]


def _methods(block: Any) -> list[str]:
    if isinstance(block, list):
        return [name for item in block for name in _methods(item)]
    if not isinstance(block, dict):
        return []
    own = [block["method"]] if isinstance(block.get("method"), str) else []
    return own + [name for value in block.values() for name in _methods(value)]
