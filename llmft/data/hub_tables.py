"""Raw records of the hub's data sets, each split from the same commit."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from llmft.api.errors import DataError, EnvironmentFault
from llmft.system import hub_client, hub_commits

_COMMIT_FOLDER = re.compile(r"[/\\]([0-9a-f]{40})[/\\]")


def hub_records(
    path: str, subset: str | None, split: str, revision: str | None, *, streaming: bool = False
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (origin, record) of a split of a hub data set.

    streaming: of a whole split; its files are read over the network, and kept nowhere. Else,
    without a network: what an earlier run, or `hf download`, left in the cache.
    Raises DataError (E109) where there is no such split, EnvironmentFault (E201).
    """
    if not streaming:
        table = _loaded(path, subset, split, revision)
        for number, record in enumerate(table, 1):
            yield f"{path}[{split}]: row {number}", record
        return
    number = 0
    with _faults(path, revision):
        for number, record in enumerate(_streamed(path, subset, split, revision), 1):
            yield f"{path}[{split}]: row {number}", record


def _streamed(path: str, subset: str | None, split: str, revision: str | None) -> Any:
    import datasets

    hub_client.guard()
    commit = hub_commits.of_dataset(path, revision)
    if commit is not None:
        hub_commits.remember(("dataset", path, revision), commit)
    return datasets.load_dataset(
        path, subset, split=split, revision=commit or revision, streaming=True
    )


@contextmanager
def _faults(path: str, revision: str | None) -> Iterator[None]:
    """Say as a fault what `datasets` raises where a data set cannot be read."""
    try:
        with hub_commits.as_reachable():
            yield
    except ValueError as error:
        if "split" in str(error).lower():
            raise DataError("E109", f"'{path}': {str(error).splitlines()[0]}") from error
        raise _not_found(path, revision, error) from error
    except (OSError, RuntimeError) as error:  # unreachable, unknown, or not allowed
        raise _not_found(path, revision, error) from error


def _loaded(path: str, subset: str | None, split: str, revision: str | None) -> Any:
    import datasets

    hub_client.guard()
    datasets.disable_progress_bars()
    commit = hub_commits.of_dataset(path, revision)
    try:
        try:
            with hub_commits.as_reachable():
                table = datasets.load_dataset(
                    path, subset, split=split, revision=commit or revision
                )
        except (OSError, RuntimeError):
            place = hub_commits.downloaded(path, commit)
            if place is None:
                raise
            table = datasets.load_dataset(str(place), subset, split=split)
            hub_commits.remember(("dataset", path, revision), place.name)
            return table
    except ValueError as error:
        if "split" in str(error).lower():
            raise DataError("E109", f"'{path}': {str(error).splitlines()[0]}") from error
        raise _not_found(path, revision, error) from error
    except (OSError, RuntimeError) as error:  # unreachable, unknown, or not allowed
        raise _not_found(path, revision, error) from error
    _hold_to_commit(table, ("dataset", path, revision), commit)
    return table


def _hold_to_commit(table: Any, name: hub_commits.Name, wanted: str | None) -> None:
    """Refuse another commit than the one wanted: without a network, the newest cached is taken."""
    for file in table.cache_files:
        if found := _COMMIT_FOLDER.search(file["filename"]):
            if wanted is not None and found[1] != wanted:
                raise EnvironmentFault(
                    "E201",
                    f"cannot load the data set '{name[1]}': commit {wanted[:8]} is needed, and"
                    f" the cache has {found[1][:8]}",
                    fix="with network access: hf download --repo-type dataset"
                    f" {shlex.quote(name[1])} --revision {wanted}",
                )
            hub_commits.remember(name, found[1])


def _not_found(path: str, revision: str | None, error: Exception) -> EnvironmentFault:
    reason = (str(error).strip().splitlines() or [repr(error)])[0]
    if hub_commits.unreachable() or "reach" in reason or "offline" in reason.lower():
        return hub_commits.not_here(("dataset", path, revision))
    return EnvironmentFault(
        "E201",
        f"cannot load the data set '{path}': {reason}",
        fix="check its name and subset; if access is restricted: hf auth login",
    )
