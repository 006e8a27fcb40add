"""What a recipe takes from the hub, brought into the cache: the model, adapters, and rows.

For machines without a network: a run there finds all of it by the commit that was fetched, as it
does where the hub cannot be reached.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmft.api import Dataset
from llmft.api.errors import EnvironmentFault
from llmft.api.splits import split_parts
from llmft.hub import sources
from llmft.modeling import peft_folder
from llmft.modeling.base_model import BaseModel, loading
from llmft.recipes.job import Job
from llmft.recipes.locating import about
from llmft.recipes.other_models import other_models
from llmft.recipes.recipe import Stage
from llmft.registry.return_checks import records_of
from llmft.system import hub_client, hub_commits

# transformers loads what stands at the top of a repository; of weights, safetensors alone.
_NEEDED = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.tiktoken")
_NOT_NEEDED = ("original/*", "consolidated*")
_PIECE = 2**20


@dataclass(frozen=True)
class Fetched:
    """What of one repository is in the cache. size: bytes. checked: files whose sums are right."""

    kind: str
    name: str
    revision: str | None
    commit: str | None
    files: int
    size: int
    checked: int


def fetch(job: Job) -> list[Fetched]:
    """Fetch what every stage of a job reads from the hub, and check the sums of the files.

    Rows that are streamed are not fetched. Raises EnvironmentFault: E201 where something is not to
    be had, E215 where a file's bytes are not those that the hub names.
    """
    hub_client.guard()
    hub_commits.begin()
    base = BaseModel(job.recipe.model)
    _ = (base.config, base.tokenizer, base.stop_ids)  # as a run reads them
    _weights(base.path, base.revision)
    for key, asked in other_models(job.recipe):
        other = BaseModel(asked.source(), ".".join(map(str, key)))
        _ = (other.config, other.tokenizer)
        _weights(other.path, other.revision, other.key)
    for bound in job.stages:
        start = bound.spec.peft_start
        if start is not None and not peft_folder.is_local(start):
            peft_folder.read(start)
            name, revision = peft_folder.name_and_revision(start)
            _pin(("model", name, revision))
        if bound.dataset is not None:
            for dataset in bound.dataset.sources or (bound.dataset,):
                _rows(bound.spec, dataset)
    return [one for name in sources.names(job.recipe) if (one := _found(name)).files]


def still_contacted(job: Job) -> list[str]:
    """Return what a run contacts though all is fetched, but for its trackers."""
    told = []
    for bound in job.stages:
        datasets = () if bound.dataset is None else bound.dataset.sources or (bound.dataset,)
        for dataset in datasets:
            if dataset.config.streaming and not dataset.is_local():
                path = getattr(dataset.config, "path", dataset.config.method)
                told.append(f"the rows of '{path}' are streamed over the network while it trains")
    if asked := job.recipe.push_to_hub:
        told.append(f"after the run, an adapter is uploaded to {asked.repo_id}")
    return list(dict.fromkeys(told))


def _weights(path: str, commit: str | None, key: str = "model") -> None:
    if Path(path).is_dir():
        return
    from huggingface_hub import snapshot_download

    with about(f"{key}.path"), loading(path, commit), hub_commits.as_reachable():
        snapshot_download(
            path, revision=commit, allow_patterns=list(_NEEDED), ignore_patterns=list(_NOT_NEEDED)
        )


def _rows(stage: Stage, dataset: Dataset[Any]) -> None:
    """Read the first record of each split that a stage reads, which brings all of it here."""
    if dataset.is_local() or dataset.config.streaming:
        return
    asked = stage.evaluate
    splits = [dataset.config.split]
    if asked is not None and not asked.holdout:
        splits.append(asked.split or dataset.held_out_split)
    for split in splits:
        for part in split_parts(split):
            next(iter(records_of(dataset, part.name)), None)
    config: Any = dataset.config
    if isinstance(getattr(config, "path", None), str):
        _pin(("dataset", config.path, getattr(config, "revision", None)))


def _pin(name: hub_commits.Name) -> None:
    if commit := hub_commits.known(name):
        hub_commits.pin(name, commit)


def _found(name: hub_commits.Name) -> Fetched:
    commit = hub_commits.known(name)
    files = list(_files(hub_commits.snapshot(name, commit)))
    checked = sum(_checked(file) for file in files)
    size = sum(file.stat().st_size for file in files)
    return Fetched(*name, commit, len(files), size, checked)


def _files(folder: Path) -> Iterator[Path]:
    yield from (path for path in sorted(folder.rglob("*")) if path.is_file())


def _checked(file: Path) -> bool:
    """Return whether a file's sum could be checked: the hub's client names its bytes by it.

    A SHA-256 of large files, Git's hash of others. Raises EnvironmentFault (E215).
    """
    wanted = file.resolve().name
    if len(wanted) not in (40, 64) or not set(wanted) <= set("0123456789abcdef"):
        return False
    found = hashlib.sha256() if len(wanted) == 64 else hashlib.sha1(usedforsecurity=False)
    if len(wanted) == 40:
        found.update(f"blob {file.stat().st_size}\0".encode())
    with file.open("rb") as opened:
        while piece := opened.read(_PIECE):
            found.update(piece)
    if found.hexdigest() != wanted:
        raise EnvironmentFault(
            "E215",
            f"'{file.name}' in the cache is not the file that the hub has: its sum is"
            f" {found.hexdigest()[:12]}, and should be {wanted[:12]}",
            fix=f"delete {file.resolve()}, and fetch again",
        )
    return True
