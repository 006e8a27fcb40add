"""Where a recipe's methods stand: the blocks with a `method` key, and the class of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Protocol, get_args

from pydantic import BaseModel

from llmft.api.errors import Fault, PluginError
from llmft.api.kinds import Kind
from llmft.recipes.tree import KeyPath, Tree, visible
from llmft.registry.contract import KINDS

OF_A_STAGE: dict[str, Kind] = {
    "adapter": "adapter",
    "alignment": "alignment",
    "task": "task",
    "data": "dataset",
}
"""The keys of a stage that hold a method's block -> the plugin kind."""

OF_TRAINING: dict[str, Kind] = {"optim": "optimizer", "lr_scheduler_type": "schedule"}
"""The keys of a stage's `train` that hold a method's name or its block -> the plugin kind."""

BASES = tuple(contract.config for contract in KINDS.values())


class Methods(Protocol):
    """What loading a recipe asks of the registry."""

    def names(self, kind: str) -> list[str]:
        """Return the installed methods of a kind."""

    def method(self, kind: Any, name: str) -> type[Any]:
        """Return the class of a method; PluginError if there is none or it is broken."""

    def records(self, load: bool = True) -> list[Any]:
        """Return what is known of each installed method."""

    def cross_cutting(self, names: Iterable[str]) -> Any:
        """Return the hook manager in which exactly the named plugins act on stages."""


class Asked:
    """A registry that is asked once for each method, however often a recipe names it."""

    def __init__(self, registry: Methods) -> None:
        self._registry = registry
        self._classes: dict[tuple[str, str], type[Any]] = {}
        self.names, self.records = registry.names, registry.records
        self.cross_cutting = registry.cross_cutting

    def method(self, kind: Any, name: str) -> type[Any]:
        """Return the class of a method; PluginError if there is none or it is broken."""
        if (kind, name) not in self._classes:
            self._classes[kind, name] = self._registry.method(kind, name)
        return self._classes[kind, name]


@dataclass(slots=True)
class Blocks:
    """The blocks of a tree: the models that read them, and the methods' kinds and classes by path.

    kinds: outer blocks before those that stand inside them.
    """

    tree: Tree
    registry: Methods
    models: dict[KeyPath, type[BaseModel]] = field(default_factory=dict)
    kinds: dict[KeyPath, Kind] = field(default_factory=dict)
    classes: dict[KeyPath, type[Any]] = field(default_factory=dict)

    def maker(self, number: int) -> tuple[KeyPath, type[Any]] | None:
        """Return the path and class of what stage `number` does: its alignment or its task."""
        for key in ("alignment", "task"):
            path: KeyPath = ("stages", number, key)
            if path in self.classes:
                return path, self.classes[path]
        return None


def find_methods(tree: Tree, registry: Methods) -> Blocks:
    """Return the class of each method's block; one that is not to be had becomes a fault."""
    blocks = Blocks(tree, registry)
    waiting = list(_outer(tree.data))
    while waiting:
        path, raw, kind = waiting.pop(0)
        blocks.kinds[path] = kind
        if not isinstance(raw, dict) or tree.is_broken(path):
            continue
        _find_method(blocks, path, raw, kind)
        if path in blocks.classes:
            waiting += _nested(blocks.classes[path].Config, raw, path)
    return blocks


def _outer(data: Any) -> Iterable[tuple[KeyPath, Any, Kind]]:
    stages = data.get("stages")
    for index, stage in enumerate(stages if isinstance(stages, list) else ()):
        if isinstance(stage, dict):
            for key, kind in OF_A_STAGE.items():
                if stage.get(key) is not None:
                    yield ("stages", index, key), stage[key], kind
            yield from _of_training(("stages", index), stage)
            yield from _metrics(("stages", index), stage)
            plugins = stage.get("plugins")
            for place, plugin in enumerate(plugins if isinstance(plugins, list) else ()):
                yield ("stages", index, "plugins", place), plugin, "callback"
    trackers = data.get("trackers")
    for index, tracker in enumerate(trackers if isinstance(trackers, list) else ()):
        yield ("trackers", index), tracker, "tracker"


def _of_training(base: KeyPath, stage: dict[str, Any]) -> Iterable[tuple[KeyPath, Any, Kind]]:
    """Yield the methods that `train` has as blocks; those by name are builtin ones."""
    train = stage.get("train")
    for key, kind in OF_TRAINING.items():
        if isinstance(train, dict) and isinstance(train.get(key), dict):
            yield (*base, "train", key), train[key], kind


def _metrics(base: KeyPath, stage: dict[str, Any]) -> Iterable[tuple[KeyPath, Any, Kind]]:
    """Yield the metrics of a stage that are blocks; one that is a name follows from its data."""
    evaluate = stage.get("evaluate")
    metrics = evaluate.get("metrics") if isinstance(evaluate, dict) else None
    for index, entry in enumerate(metrics if isinstance(metrics, list) else ()):
        if isinstance(entry, dict):
            yield (*base, "evaluate", "metrics", index), entry, "metric"


def _nested(model: type[BaseModel], raw: Any, path: KeyPath) -> Iterator[tuple[KeyPath, Any, Kind]]:
    """Yield the blocks inside a method's settings that themselves choose a method."""
    for name, kind in _choosing(model):
        for where, inner in _one_or_several((*path, name), raw.get(name)):
            if kind != "metric" or not isinstance(inner, str):  # what a name means, the data say
                yield where, inner, kind


def nested_methods(config: BaseModel, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Kind, Any]]:
    """Yield the path, kind and settings of each method that is chosen inside a block at a path."""
    for name, kind in _choosing(type(config)):
        for where, inner in _one_or_several((*path, name), getattr(config, name, None)):
            if not isinstance(inner, str):
                yield where, kind, inner


@cache
def _choosing(model: type[BaseModel]) -> tuple[tuple[str, Kind], ...]:
    """Return the fields of a block that choose a method, with its kind."""
    found = ((name, nested_kind(entry.annotation)) for name, entry in model.model_fields.items())
    return tuple((name, kind) for name, kind in found if kind is not None)


def _one_or_several(path: KeyPath, value: Any) -> Iterator[tuple[KeyPath, Any]]:
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield (*path, index), item
    elif value is not None:
        yield path, value


def nested_kind(annotation: Any) -> Kind | None:
    """Return the kind whose base settings an annotation holds, if it holds one."""
    for part in (annotation, *get_args(annotation)):
        for kind, contract in KINDS.items():
            if part is contract.config:
                return kind
        if part is not annotation and (found := nested_kind(part)):
            return found
    return None


def _find_method(blocks: Blocks, path: KeyPath, raw: dict[str, Any], kind: Kind) -> None:
    tree = blocks.tree
    where = (*path, "method")
    name = raw.get("method")
    if tree.is_broken(where):
        return
    if not isinstance(name, str) or not name:
        names = ", ".join(blocks.registry.names(kind)) or "none"
        what = "must be the name of a method" if "method" in raw else "is missing"
        tree.report("E021", where, f"'method' {what}", f"write one of {names}")
        return
    try:
        blocks.classes[path] = blocks.registry.method(kind, name)
    except PluginError as error:
        tree.adopt([_recoded(fault) for fault in error.faults], where)


def _recoded(fault: Fault) -> Fault:
    code = "E024" if fault.code == "E504" else fault.code
    return replace(fault, code=code, what=visible(fault.what), fix=visible(fault.fix))
