"""A finished run, run again from what its folder says, and both held against each other."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmft.api.errors import CheckpointError
from llmft.inference.answering import load_run
from llmft.modeling.base_model import BaseModel
from llmft.recipes.job import Job
from llmft.recipes.load import load_recipe
from llmft.registry.registry import Registry
from llmft.runs import artifacts
from llmft.runs.provenance import lock_of
from llmft.runs.resuming import changed_environment
from llmft.runs.run_folder import LOCK, RUN, plugins_of
from llmft.system import fsio
from llmft.verifying.comparing import Finding, compare_results
from llmft.verifying.resume import bring_upstream_runs

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._!-]{0,99}(\+[A-Za-z0-9.]{1,99})?")


@dataclass(frozen=True)
class Reproduction:
    """What came of it.

    changes: in what this machine and its packages differ from the run's. findings: what was
    compared. gap: the largest difference of a loss or a score, of its size where that is above 1.
    """

    again: Path
    changes: list[str]
    findings: list[Finding]
    gap: float

    @property
    def differences(self) -> list[Finding]:
        """What is not the same to the bit."""
        return [finding for finding in self.findings if finding.difference]


def finished(run: Path) -> Job:
    """Return the job of a run that can be run again.

    Raises CheckpointError where the folder is none, its base model is another (E405), or the run
    is not finished or was a smoke test (E402).
    """
    job = load_run(run, Registry.discover())
    facts = fsio.read_json(run / RUN, artifacts.PUT_BACK)
    results = {s.name: run / "stages" / s.name / artifacts.RESULT for s in job.stages}
    missing = [name for name, path in results.items() if not path.is_file()]
    if facts.get("smoke"):
        raise CheckpointError("E402", f"'{run}' was a smoke test", fix="name a run of the recipe")
    if missing:
        what = f"'{run}' has not finished its stage '{missing[0]}'"
        raise CheckpointError("E402", what, fix="finish it first: llmft run RECIPE --resume")
    return job


def differences_here(job: Job, run: Path) -> list[str]:
    """Return in what this machine, its packages and llmft's code differ from the run's."""
    lock = fsio.read_json(run / LOCK, artifacts.PUT_BACK)
    with fsio.as_a_run_wrote(run, artifacts.PUT_BACK):
        now = lock_of(job.recipe.seed, BaseModel(job.recipe.model), plugins_of(job))
        return changed_environment(lock, now, accept_plugins=True)


def requirements(run: Path) -> list[str]:
    """Return the packages of a run as the lines of a requirements file, the first a comment.

    Raises CheckpointError where the lock does not name packages and versions.
    """
    lock = fsio.read_json(run / LOCK, artifacts.PUT_BACK)
    lines = []
    with fsio.as_a_run_wrote(run, artifacts.PUT_BACK):
        lines.append(f"# Python {_plain(lock['python'])}, {json.dumps(lock['platform'])}")
        versions = {"llmft": lock["llmft"], **_of_plugins(lock), **lock["packages"]}
        for name, version in versions.items():
            if version is None:
                continue
            public, _, build = _plain(version).partition("+")  # builds are on no public index
            lines.append(f"{_plain(name)}=={public}" + (f"  # built as {version}" if build else ""))
    return lines


def _of_plugins(lock: Mapping[str, Any]) -> dict[str, str]:
    others = (p for p in lock["plugins"] if p["distribution"] != "llmft")
    return {plugin["distribution"]: plugin["version"] for plugin in others}


def _plain(text: Any) -> str:
    """Return a name or a version; ValueError for what pip would read as something else."""
    if not isinstance(text, str) or not (_NAME.fullmatch(text) or _VERSION.fullmatch(text)):
        raise ValueError("no name or version of a package")
    return text


def reproduce(
    job: Job, run: Path, work: Path, again: Callable[[Job], Path], changes: Sequence[str]
) -> Reproduction:
    """Run a finished run's recipe again under the folder `work`, and compare.

    again: runs a job, and returns its folder. changes: what `differences_here` told.
    """
    trackers = [{"method": "console"}, {"method": "jsonl"}]
    overrides = [
        f"output_dir={json.dumps(str(work))}", f"trackers={json.dumps(trackers)}",
        *(["push_to_hub=null"] if job.recipe.push_to_hub else []),
    ]  # fmt: skip
    bring_upstream_runs(job.recipe, work)
    made = again(load_recipe(job.source.path, Registry.discover(), overrides))
    locks = [fsio.read_json(folder / LOCK, artifacts.PUT_BACK) for folder in (run, made)]
    with fsio.as_a_run_wrote(run, artifacts.PUT_BACK):
        rows = [lock.get("rows_sha256", {}) for lock in locks]
        findings, gap = compare_results(run, made, (rows[0], rows[1]))
    return Reproduction(made, list(changes), findings, gap)
