"""Which commit a name on the hub means: found once, and then the same for every file of a run."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmft.api.errors import EnvironmentFault
from llmft.system import fsio, hub_client
from llmft.system.plain_files import read_text
from llmft.system.time_limit import TimeUp, time_limit

_COMMIT = re.compile(r"[0-9a-f]{40}")
_ANSWER_SECONDS = 10.0  # without a byte
_WHOLE_SECONDS = 60.0  # for a whole answer of a few bytes; a file's weights may take hours
Name = tuple[str, str, str | None]
"""A kind ('model' or 'dataset'), a name on the hub, and the revision that a recipe gives."""

_found: dict[Name, str] = {}
_without_network: list[str] = []
"""Why the hub could not be reached in this run; empty where it could, or was not asked."""


def begin(known: Iterable[Mapping[str, Any]] = ()) -> None:
    """Forget what names meant to an earlier run. known: a lock's entries, which hold again."""
    _found.clear()
    _without_network.clear()
    for entry in known:
        if entry["commit"]:
            _found[entry["kind"], entry["name"], entry["revision"]] = entry["commit"]


def begin_as_in(run: Path) -> None:
    """Let names mean what they meant to a run, by the lock in its folder."""
    try:
        begin(json.loads(read_text(run / "lock.json")).get("hub", ()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        begin()  # what else is wrong with the file is told by whoever needs it


def remember(name: Name, commit: str) -> None:
    """Keep the commit that a name was seen to mean."""
    _found[name] = commit


def pin(name: Name, commit: str) -> None:
    """Let a name mean a commit in the cache, for runs that cannot ask the hub."""
    if is_commit(name[2]):
        return
    place = _cache_folder(*name[:2]) / "refs" / (name[2] or "main")
    fsio.write_text(place, commit)


def snapshot(name: Name, commit: str | None) -> Path:
    """Return the folder of the cache with the files of a name at a commit; it may not be there."""
    return _cache_folder(*name[:2]) / "snapshots" / (commit or "-")


def known(name: Name) -> str | None:
    """Return what a name means in this run; None where it has not been loaded yet."""
    revision = name[2]
    return revision if is_commit(revision) else _found.get(name)


def is_commit(revision: str | None) -> bool:
    """Return whether a revision is a whole commit, which means the same for ever."""
    return bool(revision and _COMMIT.fullmatch(revision))


def unreachable() -> bool:
    """Return whether the hub was asked in this run and cannot be reached: the cache must do."""
    return bool(_without_network)


@contextmanager
def as_reachable() -> Iterator[None]:
    """Let upstream look into the cache only, for the block, where the hub cannot be reached.

    Else it would try for half a minute, at each file.
    """
    if not unreachable():
        yield
        return
    import datasets
    from huggingface_hub import constants

    modules: tuple[Any, ...] = (constants, datasets.config)
    before = [module.HF_HUB_OFFLINE for module in modules]
    for module in modules:
        module.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value


def _cached(name: Name) -> str | None:
    """Return what a name meant when it was fetched last, by the cache; None: unknown."""
    kind, repo, revision = name
    cached = _cache_folder(kind, repo)
    try:
        return (cached / "refs" / (revision or "main")).read_text("utf-8").strip()
    except OSError:
        found = [path.name for path in cached.glob("snapshots/*")]
        return found[0] if len(found) == 1 else None


def of_model(repo: str, revision: str | None) -> str | None:
    """Return the commit from which every file of a model is to be loaded.

    The hub is asked once; where it cannot be, the cache tells. None: the hub names no commits.
    Raises EnvironmentFault (E201) where neither has the model.
    """
    hub_client.guard()
    name = ("model", repo, revision)
    if name in _found:
        return _found[name]
    from huggingface_hub import errors, hf_hub_download

    try:
        _ask(repo, revision)
        with time_limit(_WHOLE_SECONDS):
            place = hf_hub_download(
                repo, "config.json", revision=revision, local_files_only=unreachable()
            )
        _found[name] = Path(place).parent.name
    except TimeUp as error:
        what = f"cannot load '{repo}': {hub_client.host()} is not done after {_WHOLE_SECONDS:.0f} s"
        raise EnvironmentFault("E201", what, fix="try again when it answers") from error
    except errors.LocalEntryNotFoundError as error:
        raise not_here(name) from error
    except errors.GatedRepoError as error:
        raise EnvironmentFault(
            "E201",
            f"cannot load '{repo}': you must accept its terms first",
            fix=f"accept them at https://huggingface.co/{repo}, and log in: hf auth login",
        ) from error
    except errors.RepositoryNotFoundError as error:
        what = (
            f"cannot load '{repo}': the hub has no model of that name, or you have no access to it"
        )
        fix = "check model.path; for a private model: hf auth login"
        raise EnvironmentFault("E201", what, fix=fix) from error
    except errors.RevisionNotFoundError as error:
        what = f"cannot load '{repo}': it has no revision '{revision}'"
        raise EnvironmentFault("E201", what, fix="check model.revision") from error
    except errors.EntryNotFoundError:  # a tokenizer's repository may have no config
        if commit := known(name) or _cached(name):
            _found[name] = commit
    return _found.get(name)


def _ask(repo: str, revision: str | None) -> None:
    """Ask the hub for a model once, and note where it cannot be reached.

    Downloading would try again for 23 seconds where nothing is cached, and for each file anew.
    Raises the client's errors where the hub answers that there is no such model.
    """
    from huggingface_hub import constants, errors, get_hf_file_metadata, hf_hub_url

    if unreachable() or constants.is_offline_mode():
        return
    url = hf_hub_url(repo, "config.json", revision=revision)
    try:
        with time_limit(_WHOLE_SECONDS):
            get_hf_file_metadata(url, timeout=_ANSWER_SECONDS)
    except (
        errors.RepositoryNotFoundError,  # and that of gated ones
        errors.RevisionNotFoundError,
        errors.EntryNotFoundError,
    ):
        raise
    except Exception as error:  # of whichever HTTP library the client speaks through
        _without_network.append(type(error).__name__)


def of_dataset(repo: str, revision: str | None) -> str | None:
    """Return the commit from which every split of a data set is to be loaded; None: unknown."""
    hub_client.guard()
    name = ("dataset", repo, revision)
    if name not in _found and not is_commit(revision):
        from huggingface_hub import HfApi, errors

        try:
            with time_limit(_WHOLE_SECONDS):
                info = HfApi().dataset_info(repo, revision=revision, timeout=_ANSWER_SECONDS)
            if info.sha:
                _found[name] = info.sha
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
            pass  # loading it says better what is wrong
        except Exception as error:  # of whichever HTTP library the client speaks through
            _without_network.append(type(error).__name__)
    return known(name) or _cached(name)


def of_adapter(repo: str, revision: str | None) -> str:
    """Return the commit from which both files of an adapter are to be loaded.

    The hub is asked once; where it cannot be, the cache tells.
    Raises EnvironmentFault (E201) where neither has it.
    """
    hub_client.guard()
    name = ("model", repo, revision)
    if commit := known(name):
        return commit
    from huggingface_hub import HfApi, constants, errors

    if not unreachable() and not constants.is_offline_mode():
        try:
            with time_limit(_WHOLE_SECONDS):
                info = HfApi().model_info(repo, revision=revision, timeout=_ANSWER_SECONDS)
            if info.sha:
                _found[name] = info.sha
                return info.sha
        except errors.RevisionNotFoundError as error:
            what = f"cannot load '{repo}': it has no revision '{revision}'"
            raise EnvironmentFault("E201", what, fix="check what follows '@'") from error
        except errors.RepositoryNotFoundError as error:  # that of gated ones, too
            what = f"cannot load '{repo}': the hub has no such adapter, or you have no access to it"
            fix = "check start_from; for a private or gated one: hf auth login"
            raise EnvironmentFault("E201", what, fix=fix) from error
        except Exception as error:  # of whichever HTTP library the client speaks through
            _without_network.append(type(error).__name__)
    if commit := _cached(name):
        _found[name] = commit
        return commit
    raise not_here(name)


def file_of_model(repo: str, commit: str, file: str, most: int) -> Path | None:
    """Return where a file of a repository is, fetched where it is not in the cache; None: no file.

    Raises EnvironmentFault (E201) where it has more bytes than `most`, or cannot be had.
    """
    import huggingface_hub as hub
    from huggingface_hub import constants, errors

    hub_client.guard()
    cached = hub.try_to_load_from_cache(repo, file, revision=commit)
    if isinstance(cached, str):
        return Path(cached)
    if not unreachable() and not constants.is_offline_mode():
        try:
            url = hub.hf_hub_url(repo, file, revision=commit)
            with time_limit(_WHOLE_SECONDS):
                size = hub.get_hf_file_metadata(url, timeout=_ANSWER_SECONDS).size or 0
        except errors.EntryNotFoundError:
            return None
        except Exception as error:  # of whichever HTTP library the client speaks through
            _without_network.append(type(error).__name__)
        else:
            if size > most:
                what = f"'{file}' of '{repo}' has {size:,} bytes, which no such file has"
                raise EnvironmentFault("E201", what, fix="name another one")
            return Path(hub.hf_hub_download(repo, file, revision=commit))
    raise not_here(("model", repo, commit))


def downloaded(repo: str, commit: str | None) -> Path | None:
    """Return the folder into which `hf download` has put a data set, or None where it has not."""
    folder = _cache_folder("dataset", repo) / "snapshots" / (commit or "-")
    return folder if folder.is_dir() and not _parts_missing(folder) else None


def not_here(name: Name, size: str = "its size is known only to the hub") -> EnvironmentFault:
    """Return the error for what is not in the cache where the hub cannot be asked."""
    from huggingface_hub import constants

    kind, repo, revision = name
    told = "the hub cannot be reached"
    if constants.is_offline_mode():
        told = "HF_HUB_OFFLINE is set"
    of_kind = "the data set " if kind == "dataset" else ""
    more = " --repo-type dataset" if kind == "dataset" else ""
    more += f" --revision {shlex.quote(revision)}" if revision else ""
    return EnvironmentFault(
        "E201",
        f"cannot load {of_kind}'{repo}': it is not complete in the cache, and {told}; {size}",
        fix=f"with network access: hf download {shlex.quote(repo)}{more}",
    )


def _cache_folder(kind: str, repo: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"{kind}s--{repo.replace('/', '--')}"


def _parts_missing(folder: Path) -> bool:
    """Return whether a file that is one of several, by its name, is there without the others."""
    seen: dict[tuple[str, str], int] = {}
    for path in folder.rglob("*-of-*"):
        if part := re.search(r"^(.*?)-?\d+-of-(\d+)", str(path)):
            seen[part[1], part[2]] = seen.get((part[1], part[2]), 0) + 1
    return any(count < int(whole) for (_, whole), count in seen.items())
