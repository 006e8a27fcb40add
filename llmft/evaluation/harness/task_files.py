"""The files that tasks of a folder of the user's own are made of: looked at, and never run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmft.api.errors import DataError, TrustError
from llmft.api.shown_text import on_one_line
from llmft.system.plain_files import read_bytes

_LARGEST_TASK = 2**20
_MOST_FILES = 20_000


@dataclass(frozen=True)
class TaskFiles:
    """Files of a folder of tasks, of those that are asked for: settings, code, and rows.

    complete: whether none of the tasks asked for is one that comes with the harness.
    """

    yaml: tuple[Path, ...] = ()
    code: tuple[Path, ...] = ()
    data: tuple[Path, ...] = ()
    complete: bool = False


@dataclass
class _TaskFile:
    """A YAML file, looked at without making anything of it. functions: as `!function` has them."""

    path: Path
    values: dict[str, Any] = field(default_factory=dict)
    functions: list[str] = field(default_factory=list)


def task_files(include_path: str, tasks: Sequence[str]) -> TaskFiles:
    """Return the files that tasks of a folder are made of, those that they include among them.

    Nothing of them runs. Raises DataError (E107) where there is no such folder, TrustError (E607)
    where a task names a function of no file of its own.
    """
    folder = Path(include_path)
    if not folder.is_dir():
        what = f"there is no folder '{include_path}' with tasks"
        raise DataError("E107", what, fix="name a folder that has the tasks' YAML files")
    paths = sorted(folder.glob("**/*.yaml"), key=lambda path: path.as_posix())
    if len(paths) > _MOST_FILES:
        what = f"'{include_path}' has more than {_MOST_FILES:,} YAML files"
        raise DataError("E107", what, fix="name the folder that has the tasks")
    found = [_with_included(path, set()) for path in paths]
    by_name: dict[str, list[list[_TaskFile]]] = {}
    for parts in found:
        values = {key: value for part in parts for key, value in part.values.items()}
        for key in ("task", "group", "tag"):
            for name in _words(values.get(key)) if key == "tag" else [values.get(key)]:
                if isinstance(name, str):
                    by_name.setdefault(name, []).append(parts)
    waiting, seen = list(tasks), set[str]()
    used: dict[Path, _TaskFile] = {}
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for parts in by_name.get(name, ()):
            used |= {part.path: part for part in parts}
            for part in parts:
                waiting += [one for one in _words(part.values.get("task")) if one not in seen]
    code = {code_file(one, part.path.parent) for part in used.values() for one in part.functions}
    data = {Path(word) for part in used.values() for word in _words(part.values.get("rows"))}
    return TaskFiles(
        tuple(sorted(used)),
        tuple(sorted(code)),
        tuple(sorted(path for path in data if path.is_file())),
        complete=seen <= by_name.keys(),
    )


def _with_included(path: Path, seen: set[Path]) -> list[_TaskFile]:
    """Return a file after those that it includes; files that cannot be read are the harness's."""
    real = path.resolve()
    if real in seen or not real.is_file():
        return []
    seen.add(real)
    read = _looked_at(path)
    parts = []
    for name in _words(read.values.get("include")):
        if not is_installed(path.parent / name):
            parts += _with_included(path.parent / name, seen)
    return [*parts, read]


def _looked_at(path: Path) -> _TaskFile:
    """Return what a YAML file says of itself: names, functions, files of rows."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError
    from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode

    found = _TaskFile(path)
    try:
        root = YAML(typ="safe", pure=True).compose(read_bytes(path, _LARGEST_TASK))
    except (OSError, YAMLError, UnicodeDecodeError, RecursionError):
        return found  # the harness leaves it out, too
    waiting: list[tuple[Any, str]] = [(root, "")]
    seen: set[int] = set()
    rows: list[str] = []
    while waiting:
        node, under = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, ScalarNode):
            if str(node.tag).endswith("!function"):
                found.functions.append(str(node.value))
            elif under == "data_files":
                rows.append(str(node.value))
        elif isinstance(node, SequenceNode):
            waiting += [(part, under) for part in node.value]
        elif isinstance(node, MappingNode):
            for key, value in node.value:
                name = str(getattr(key, "value", ""))
                waiting.append((value, under or (name if name == "data_files" else "")))
                if node is root and name in ("task", "group", "tag", "include"):
                    found.values[name] = _names_in(value)
    found.values["rows"] = rows
    return found


def _names_in(node: Any) -> Any:
    """Return a node's text, or the texts of its parts: a group's tasks, or one's own blocks."""
    from ruamel.yaml.nodes import MappingNode

    if isinstance(node.value, str):
        return node.value
    names: list[str] = []
    for part in node.value:
        if isinstance(getattr(part, "value", None), str):
            names.append(part.value)
        elif isinstance(part, MappingNode):
            names += [
                name
                for key, value in part.value
                if getattr(key, "value", "") in ("task", "group")
                for name in _words(_names_in(value))
            ]
    return names


def _words(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())


def code_file(function: str, folder: Path) -> Path:
    """Return the file beside a task that has a function; TrustError (E607) where there is none."""
    module = function.rpartition(".")[0]
    path = folder / f"{module.replace('.', '/')}.py"
    if not module or not path.is_file():
        what = f"a task in '{shown(folder)}' names '{on_one_line(function)[:200]}', which is no"
        raise TrustError(
            "E607",
            f"{what} function of a file beside it, and a task never runs other code",
            fix="put the function into a file beside the task: !function file.function",
        )
    return path


def is_installed(path: Path) -> bool:
    """Return whether a path is within the harness's own package."""
    import importlib.util

    spec = importlib.util.find_spec("lm_eval")
    places = spec.submodule_search_locations if spec else ()
    return any(path.resolve().is_relative_to(Path(place).resolve()) for place in places or ())


def shown(path: Path) -> str:
    """Return a path as it is best typed from here."""
    with_here = os.path.relpath(path)
    return str(path) if with_here.startswith("..") else with_here
