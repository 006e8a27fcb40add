"""An adapter that PEFT saved, in a folder or on the hub: what it is, read without loading it.

The folder is anybody's: links, pickles and files of odd sizes are refused, and what its config
asks for, patterns of module names above all, is compared and never acted on.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from llmft.api.errors import CheckpointError, EnvironmentFault, TrustError
from llmft.modeling.base_model import HUB_ID
from llmft.modeling.folder_checks import ADAPTER_CONFIG, check_settings
from llmft.system import fsio, hub_commits
from llmft.system.plain_files import read_text, refuse_links_below

WEIGHTS = "adapter_model.safetensors"
_LARGEST_CONFIG = 2**20
_LARGEST_WEIGHTS = 64 * 2**30
_LARGEST_HEADER = 2**27
_PICKLE = "adapter_model.bin"


@dataclass(frozen=True)
class PeftFolder:
    """What a folder holds. settings: its adapter_config.json. tensors: shapes by name."""

    folder: Path
    settings: dict[str, Any]
    tensors: dict[str, tuple[int, ...]]


def is_local(asked: str) -> bool:
    """Return whether a recipe's word means a folder of this machine: no host is contacted."""
    return Path(asked).expanduser().exists() or not _on_the_hub(asked)


def name_and_revision(asked: str) -> tuple[str, str | None]:
    """Return the hub's name of an adapter, and the revision that is asked for."""
    name, _, revision = asked.partition("@")
    return name, revision or None


def locate(asked: str) -> Path:
    """Return the folder of an adapter; from the hub, it is fetched at one commit.

    Raises EnvironmentFault (E201) where there is none, TrustError where a link, pipe or device
    stands in it.
    """
    path = Path(asked).expanduser()
    if path.is_dir():
        refuse_links_below(path)
        return path
    if not is_local(asked):
        return _fetched(*name_and_revision(asked))
    what = (
        f"'{asked}' is a file, not an adapter's folder" if path.exists() else f"no folder '{asked}'"
    )
    fix = "write peft:FOLDER, peft:ORG/NAME or peft:ORG/NAME@REVISION"
    raise EnvironmentFault("E201", what, fix=fix)


def read(asked: str) -> PeftFolder:
    """Return what an adapter's folder holds, having looked it through; no tensor is read.

    Raises as `locate`, EnvironmentFault where a file is missing or damaged, and TrustError where
    its weights are a pickle.
    """
    folder = locate(asked)
    for name in (ADAPTER_CONFIG, WEIGHTS):
        if (folder / name).is_file():
            continue
        if name == WEIGHTS and (folder / _PICKLE).is_file():
            raise TrustError(
                "E602",
                f"'{folder}' holds an adapter as a pickle only ({_PICKLE}), and a pickle can run"
                " any code",
                fix="convert it to safetensors on a machine you can lose",
            )
        what = f"'{asked}' is no adapter that PEFT saved: it has no {name}"
        fix = "name the folder that save_pretrained wrote"
        if (folder / "stages").is_dir() and (folder / "run.json").is_file():
            fix = f"for a run of llmft, write start_from: run:{folder.resolve().name}/STAGE"
        raise EnvironmentFault("E201", what, fix=fix)
    if (folder / ADAPTER_CONFIG).stat().st_size > _LARGEST_CONFIG:
        what = f"'{folder / ADAPTER_CONFIG}' has more than {_LARGEST_CONFIG:,} bytes"
        raise EnvironmentFault("E201", what, fix="copy the adapter again")
    check_settings(folder / ADAPTER_CONFIG)
    settings = json.loads(read_text(folder / ADAPTER_CONFIG, _LARGEST_CONFIG))
    return PeftFolder(folder, settings, _shapes(folder / WEIGHTS))


def hashes(asked: str) -> dict[str, str]:
    """Return the SHA-256 of the two files that an adapter consists of."""
    folder = read(asked).folder
    return {name: fsio.sha256(folder / name) for name in (ADAPTER_CONFIG, WEIGHTS)}


def base_remark(asked: str, found: PeftFolder, base: Any) -> str:
    """Return what a person should know of the base that an adapter names; '' if it is the recipe's.

    base: the recipe's BaseModel. Raises CheckpointError (E405) where it is known to be another.
    """
    named, ours = str(found.settings.get("base_model_name_or_path") or ""), str(base.asked.path)
    if named == ours:
        return ""
    theirs, own = Path(named).expanduser(), Path(base.path)
    differs = CheckpointError(
        "E405",
        f"the adapter '{asked}' was trained on '{named}', and model.path is '{ours}'",
        fix="give that model as model.path, or name an adapter that was trained on this one",
    )
    if HUB_ID.fullmatch(named) and not theirs.exists() and not own.is_dir():
        raise differs
    if named and theirs.is_dir() and own.is_dir():
        if _same_weights(theirs, own):
            return ""
        raise differs
    told = f"names '{named}' as its base" if named else "does not name its base"
    return (
        f"the adapter '{asked}' {told}, and model.path is '{ours}': its shapes fit, but whether"
        " these are the weights that it was trained on cannot be known from here"
    )


def _same_weights(one: Path, other: Path) -> bool:
    """Return whether two folders hold the same weights; files are read where sizes agree only."""
    if one.samefile(other):
        return True
    files = [sorted(p for p in f.glob("*.safetensors") if p.is_file()) for f in (one, other)]
    sizes = [[(path.name, path.stat().st_size) for path in some] for some in files]
    return sizes[0] == sizes[1] and all(
        fsio.sha256(a) == fsio.sha256(b) for a, b in zip(*files, strict=True)
    )


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a safetensors file's tensors, by its header alone."""
    damaged = EnvironmentFault(
        "E201", f"'{path}' is damaged: its header is not one of safetensors", fix="copy it again"
    )
    size = path.stat().st_size
    if size > _LARGEST_WEIGHTS or fsio.is_of_another_size(path):
        raise damaged
    with path.open("rb") as file:
        header = json.loads(file.read(min(int.from_bytes(file.read(8), "little"), _LARGEST_HEADER)))
    header.pop("__metadata__", None)
    found = {name: tuple(told.get("shape", ())) for name, told in header.items()}
    if not found or not all(type(n) is int for shape in found.values() for n in shape):
        raise damaged
    return found


def _on_the_hub(asked: str) -> bool:
    name, revision = name_and_revision(asked)
    named = bool(HUB_ID.fullmatch(name)) and "/" in name
    return named and (revision is None or bool(re.fullmatch(r"[\w./-]{1,200}", revision)))


@lru_cache(maxsize=8)
def _kept(name: str, commit: str) -> Path:
    place = None
    for file in (ADAPTER_CONFIG, WEIGHTS):
        place = hub_commits.file_of_model(name, commit, file, _LARGEST_WEIGHTS) or place
    assert place is not None  # the config is there, or there was an error
    return place.parent


def _fetched(name: str, revision: str | None) -> Path:
    return _kept(name, hub_commits.of_adapter(name, revision))
