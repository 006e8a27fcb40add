"""A run's folder: its name, and what it says about the recipe and the ground it stands on."""

from __future__ import annotations

import hashlib
import json
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmft.api.errors import EnvironmentFault, Interrupted, WaitsForPeople
from llmft.modeling import peft_folder
from llmft.modeling.base_model import BaseModel
from llmft.recipes.job import Job
from llmft.recipes.other_models import name_of, other_models
from llmft.recipes.recipe import Recipe
from llmft.recipes.references import references
from llmft.registry.entry_points import code_hash
from llmft.runs import artifacts
from llmft.runs.resuming import PreviousRun, changed_environment
from llmft.system import fsio, trust
from llmft.system.launcher import command
from llmft.system.plain_files import refuse_link

LOCK, RUN = "lock.json", artifacts.RUN


def new_run_folder(recipe: Recipe) -> Path:
    """Make and return a folder that no other run has: <output_dir>/<name>/<time>-<hash>.

    Raises TrustError (E605) where <name> is a link: output_dir may be one, as the user named it.
    """
    parent = Path(recipe.output_dir) / recipe.name
    refuse_link(parent)
    text = json.dumps(recipe.resolved(), sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    for attempt in range(1000):
        stamp = time.strftime("%Y%m%d-%H%M%S") + (f"-{attempt + 1}" if attempt else "")
        folder = parent / f"{stamp}-{digest}"
        try:
            fsio.make_private_folder(folder)
        except FileExistsError:
            continue
        return folder.resolve()
    raise EnvironmentFault("E203", f"cannot find a free name for a run folder in '{parent}'")


def write_inputs(folder: Path, job: Job, base: BaseModel, *, smoke: bool = False) -> dict[str, Any]:
    """Write the recipe as given and as understood, and return what the run stands on.

    run.json comes last: a folder that has it can be resumed.
    """
    provenance = _provenance(job, base)
    _write_recipe(folder, job)
    fsio.write_json(folder / LOCK, provenance)
    fsio.write_json(
        folder / RUN,
        {
            "run_id": folder.name,
            "name": job.recipe.name,
            "recipe_file": job.source.path,
            "overrides": list(job.source.overrides),
            "stages": [stage.name for stage in job.recipe.stages],
            **({"smoke": True} if smoke else {}),
        },
    )
    return provenance


def reopen(
    folder: Path,
    job: Job,
    base: BaseModel,
    previous: PreviousRun,
    killed: Mapping[str, Any] | None,
    *,
    accept_plugins: bool = False,
) -> tuple[dict[str, Any], list[str]]:
    """Write down that the run goes on, and return what it stood on, and what a person should read.

    killed: what the lock of a process that ended without notice says.
    """
    fsio.sweep_staging(folder)
    provenance = fsio.read_json(folder / LOCK, artifacts.PUT_BACK)
    now = _provenance(job, base)
    with fsio.as_a_run_wrote(folder, artifacts.PUT_BACK):
        changes = changed_environment(provenance, now, accept_plugins=accept_plugins)
        known = [(plugin["kind"], plugin["method"]) for plugin in provenance["plugins"]]
        new = [p for p in now["plugins"] if (p["kind"], p["method"]) not in known]
        provenance["plugins"] += new
    told = ("processes", "numerics")
    if any(provenance.get(name) != now[name] for name in told):
        provenance |= {name: now[name] for name in told}
        fsio.write_json(folder / LOCK, provenance)
    notes = []
    if killed is not None:
        notes.append(f"the previous run ended without notice{_last_seen(killed)}")
    if changes:
        notes.append(f"not bit-exact: {', '.join(changes)}")
    notes += [f"edited since: {edit}" for edit in previous.edits if edit.kind == "applied"]
    stages = [stage.name for stage in job.recipe.stages]
    if previous.edits:
        _write_recipe(folder, job)
    run = fsio.read_json(folder / RUN, artifacts.PUT_BACK)
    entry = {
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
        "edits": [str(edit) for edit in previous.edits],
        "changes": changes,
        "killed": killed,
    }
    fsio.write_json(
        folder / RUN, {**run, "stages": stages, "resumed": [*run.get("resumed", []), entry]}
    )
    return provenance, notes


def saying_how_to_go_on(
    error: Interrupted,
    job: Job,
    folder: Path,
    last: str | None,
    smoke: bool,
    copies_to: str | None = None,
) -> Interrupted:
    """Return the error with what to type. last: the stage after which the run was to stop.

    copies_to: the address to which it is copied.
    """
    command = resume_command(job, folder, last, smoke, copies_to)
    fix = f"continue with: {command}" if command else ""
    return Interrupted(error.exit_code - 128, error.faults[0].what, fix=fix)


def saying_who_ranks(
    error: WaitsForPeople,
    job: Job,
    folder: Path,
    last: str | None,
    smoke: bool,
    copies_to: str | None = None,
) -> WaitsForPeople:
    """Return the error with what to type; see `saying_how_to_go_on`."""
    command = resume_command(job, folder, last, smoke, copies_to)
    fix = f"rank with: llmft rank {shlex.quote(str(folder))}; then continue with: {command}"
    return WaitsForPeople(error.faults[0].what, fix=fix)


def resume_command(
    job: Job, folder: Path, last: str | None, smoke: bool, copies_to: str | None
) -> str:
    """Return what a person types to go on with a run; '' where nothing can be resumed yet.

    last: the stage after which it is to stop. copies_to: the address to which it is copied.
    """
    if smoke or not (folder / RUN).is_file():
        return ""
    named = any(found.is_of_another_run for found in references(job.recipe))
    # Where a stage goes on from another run, that is looked for under output_dir.
    kept = [text for text in job.source.overrides if named or not text.startswith("output_dir=")]
    changes = [word for text in kept for word in ("--set", text)]
    until = ["--until", last] if last else []
    until += ["--checkpoints-to", copies_to] if copies_to else []
    changes += [word for text in trust.granted() for word in ("--trust", text)]
    return shlex.join(
        [*command(), "run", job.source.path, str(folder), "--resume", *until, *changes]
    )


def _last_seen(killed: Mapping[str, Any]) -> str:
    if not killed:
        return ""
    at, pid, host = (killed.get(key, "?") for key in ("at", "pid", "host"))
    return f" at {at} (process {pid} on {host})"


def _write_recipe(folder: Path, job: Job) -> None:
    fsio.write_text(folder / "recipe.yaml", job.source.text)
    fsio.write_text(folder / "resolved.yaml", resolved_yaml(job.recipe))


def _provenance(job: Job, base: BaseModel) -> dict[str, Any]:
    from llmft.runs.provenance import lock_of, model_hashes, numerics_of

    asked = [stage.peft_start for stage in job.recipe.stages if stage.peft_start is not None]
    adapters = {"adapters": {one: peft_folder.hashes(one) for one in asked}} if asked else {}
    named = {name_of(other): other for _, other in other_models(job.recipe)}  # each is read once
    others = {name: model_hashes(BaseModel(other.source())) for name, other in named.items()}
    models = {"other_models": others} if others else {}
    numerics = {one.name: numerics_of(one.train) for one in job.recipe.stages}
    return {
        **lock_of(job.recipe.seed, base, plugins_of(job)),
        "numerics": numerics,
        **adapters,
        **models,
        "rows_sha256": {},
    }


def resolved_yaml(recipe: Recipe) -> str:
    """Return the recipe with every default written out, as YAML that loads to the same recipe."""
    return as_yaml(recipe.resolved())


def as_yaml(data: Any) -> str:
    """Return plain data as YAML, in blocks, keys in their order."""
    import io

    from ruamel.yaml import YAML

    stream = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(data, stream)
    return stream.getvalue()


def plugins_of(job: Job) -> list[dict[str, Any]]:
    """Return which distribution, version and code gave each method that a recipe names."""
    return [
        {
            "kind": record.kind,
            "method": record.method,
            "distribution": record.distribution,
            "version": record.version,
            "sha256": code_hash(record.module),
        }
        for record in job.records
    ] + [
        {
            "kind": "file", "method": path, "distribution": f"--trust file:{path}", "version": "",
            "sha256": trust.digest_of(path), "stages": stages,
        }
        for path, stages in job.code().items()
    ]  # fmt: skip
