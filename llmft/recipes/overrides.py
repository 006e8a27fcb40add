"""`--set stages.sft.train.learning_rate=1e-4`: values from the command line, typed as in a file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from llmft.api.errors import Fault, Place, RecipeError
from llmft.recipes.scalar import scalar
from llmft.recipes.secret import masked_source
from llmft.recipes.textfile import decoded
from llmft.recipes.tree import KeyPath, Tree, dotted, visible
from llmft.recipes.yamlfile import MAX_DEPTH, parse
from llmft.system.nearest import did_you_mean

_INDEX = re.compile(r"\[(\d{1,8})\]")  # as errors write it: stages[0].train
_SHAPE = "write --set PATH=VALUE, such as --set stages.sft.train.learning_rate=1e-4"


class _Refused(Exception):
    """An override that cannot be applied: code, what, fix."""


def apply_overrides(tree: Tree, overrides: Sequence[str]) -> None:
    """Set each PATH=VALUE in the tree; one that cannot be set becomes a fault of the tree."""
    for override in overrides:
        place = Place(masked_source(f"--set {visible(override)[:500]}"))
        try:
            target, separator, text = override.partition("=")
            target = _INDEX.sub(r".\1", target)
            if not separator or not all(target.split(".")) or target.count(".") >= MAX_DEPTH:
                raise _Refused("E012", "this is not PATH=VALUE", _SHAPE)
            _set(tree, target.split("."), _value(text), text, place)
        except _Refused as refused:
            code, what, fix = refused.args
            tree.faults.append(Fault(code, what, fix, "", place))


def _value(text: str) -> Any:
    """Return a flag's value: a scalar as in the file, or a list or block in [..] or {..}."""
    try:
        if not text.startswith(("[", "{", '"', "'")):
            decoded(text.encode("utf-8", "surrogateescape"), "")
            return scalar(text.strip())
        value = parse("value: " + decoded(text.encode("utf-8", "surrogateescape"), ""), "")
    except RecipeError as error:
        raise _Refused("E012", error.faults[0].what, "quote it for the shell, too") from error
    if value.faults or len(value.data) != 1:
        what = value.faults[0].what if value.faults else "this is not one value"
        raise _Refused("E012", what, "quote it for the shell, too")
    return value.data["value"]


def _set(tree: Tree, names: list[str], value: Any, text: str, place: Place) -> None:
    block: Any = tree.data
    path: KeyPath = ()
    for depth, name in enumerate(names):
        last = depth == len(names) - 1
        if isinstance(block, list):
            index = _index(block, name, path)
            path = (*path, index)
            if last:
                block[index] = value
            block = block[index]
            continue
        if not isinstance(block, dict):
            what = f"{dotted(path)} is not a block, so nothing can be set in it"
            raise _Refused("E013", what, "set its whole value, or correct the path")
        path = (*path, name)
        if last:
            block[name] = value
        elif block.get(name) is None:
            block[name] = {}
            tree.keys[path] = tree.values[path] = place
        block = block[name]
    _place(tree, path, value, text, place)


def _index(block: list[Any], name: str, path: KeyPath) -> int:
    """Return which item of a list is meant, by its `name` (a stage's), its method, or its index."""
    if name.isascii() and name.isdigit() and len(name) < 9:
        if int(name) < len(block):
            return int(name)
        what = f"{dotted(path)} has {len(block)} items, counted from 0"
        raise _Refused("E013", what, "use a smaller index")
    labels = [
        item.get("name", item.get("method")) if isinstance(item, dict) else None for item in block
    ]
    if labels.count(name) == 1:
        return labels.index(name)
    known = [label for label in labels if isinstance(label, str)]
    if name in known:
        what = f"{dotted(path)} has several items called '{visible(name)[:60]}'"
        raise _Refused("E013", what, "use the index, counted from 0")
    have = ", ".join(visible(label)[:60] for label in known) or "none"
    what = f"{dotted(path)} has nothing called '{visible(name)[:60]}' (have: {have})"
    raise _Refused("E013", what, did_you_mean(name, known) or "use one of these or an index")


def _place(tree: Tree, path: KeyPath, value: Any, text: str, place: Place) -> None:
    """Let everything at the path point to the flag, and forget what stood there before."""
    old_path = dotted(path)
    inside = (f"{old_path}.", f"{old_path}[")
    tree.faults = [
        fault
        for fault in tree.faults
        if fault.path != old_path and not fault.path.startswith(inside)
    ]
    for places in (tree.keys, tree.values):
        for old in [old for old in places if old[: len(path)] == path]:
            del places[old]
    for raw in [old for old in tree.raw if old[: len(path)] == path]:
        del tree.raw[raw]
    tree.broken -= {old for old in tree.broken if old[: len(path)] == path}
    tree.keys[path] = tree.values[path] = place
    if isinstance(value, int | float) and not isinstance(value, bool):
        tree.raw[path] = text.strip()[:60]
