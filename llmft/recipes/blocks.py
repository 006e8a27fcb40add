"""A raw tree to models: every block validated by its own class, every fault noted with its place.

After the faults of a round are noted, what was wrong is taken out and the rest is validated again,
so that one mistake does not hide another, and checks across blocks see as much as there is.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from llmft.api.errors import LlmftError
from llmft.recipes.asking import asked_plugin
from llmft.recipes.methods import OF_TRAINING, Blocks, Methods, find_methods
from llmft.recipes.tree import KeyPath, Tree, visible
from llmft.recipes.unknown import answer_unknown, model_in
from llmft.recipes.wording import Error, answer, literal_choices
from llmft.registry.contract import KINDS
from llmft.registry.return_checks import AUTHOR

M = TypeVar("M", bound=BaseModel)
_ROUNDS = 4


def find_blocks(tree: Tree, root: type[BaseModel], registry: Methods) -> Blocks:
    """Return which model reads each block; a method that is not to be had becomes a fault."""
    blocks = find_methods(tree, registry)
    _find_models(blocks, tree.data, root, ())
    return blocks


def _find_models(blocks: Blocks, raw: Any, model: type[BaseModel], path: KeyPath) -> None:
    """Note the model of a block and of the blocks inside it, also of those that were left out."""
    blocks.models[path] = model
    for name, inner, several in _models_in(model):
        value = raw.get(name) if isinstance(raw, dict) else None
        where = (*path, name)
        if isinstance(value, list):
            for index, item in enumerate(value):
                _find_one(blocks, item, inner, (*where, index))
        elif not several:
            _find_one(blocks, value, inner, where)


@cache
def _models_in(model: type[BaseModel]) -> tuple[tuple[str, type[BaseModel], bool], ...]:
    """Return the fields of a model that hold another, with it, and whether they hold several."""
    found = ((n, model_in(f.annotation), str(f.annotation)) for n, f in model.model_fields.items())
    return tuple((name, inner, "list" in text) for name, inner, text in found if inner is not None)


def _find_one(blocks: Blocks, raw: Any, model: type[BaseModel], path: KeyPath) -> None:
    if (cls := blocks.classes.get(path)) is not None:
        model = cls.Config
    _find_models(blocks, raw, model, path)


def validated(blocks: Blocks, root: type[M]) -> M | None:
    """Return the recipe, or as much of it as stands when its faults are taken out, or None."""
    tree = blocks.tree
    data = _copied(tree.data)
    for path, kind in reversed(blocks.kinds.items()):  # those inside others first
        raw = _at(data, path)
        if not isinstance(raw, dict):
            continue
        cls = blocks.classes.get(path)
        config = _fitted(blocks, cls.Config, _copied(raw), path) if cls else None
        if config is None:
            base = KINDS[kind].config
            tree.broken.add((*path, "method"))
            blocks.classes.pop(path, None)
            # Stands in for the block, so that the rest of the recipe can be looked at.
            config = base.model_construct()
        _at(data, path[:-1])[path[-1]] = config
    return _fitted(blocks, root, data, ())


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


def _at(data: Any, path: KeyPath) -> Any:
    for part in path:
        data = data[part]
    return data


def _fitted(blocks: Blocks, model: type[M], raw: dict[str, Any], base: KeyPath) -> M | None:
    """Return `raw` as a model; what is wrong is noted, taken out, and the rest tried again."""
    removed: set[str] = set()
    for _ in range(_ROUNDS):
        try:
            return model.model_validate(raw)
        except ValidationError as error:
            grouped = _grouped(error, raw)
        except LlmftError as error:
            blocks.tree.adopt(error.faults, base)
            return None
        except Exception as error:
            # A validator of a plugin's: whatever it raises must name the block, not end llmft.
            said = f"{type(error).__name__}: {visible(str(error))}"
            what = f"the settings' validator of {asked_plugin(blocks, base)} failed: {said}"
            blocks.tree.report("E502", base, what[:400], AUTHOR)
            return None
        # Unknown keys first: one that should have been 'path' says all about a missing 'path'.
        for path in sorted(grouped, key=lambda path: grouped[path][0]["type"] == "missing"):
            _report(blocks, (*base, *path), grouped[path], removed)
        for path in sorted(grouped, key=repr, reverse=True):
            if not _taken_out(blocks, raw, base, path, grouped[path], removed):
                return None
    return None


def _grouped(error: ValidationError, raw: Any) -> dict[KeyPath, list[Error]]:
    """Return the errors by path; a union's members, which pydantic adds to paths, are left out."""
    grouped: dict[KeyPath, list[Error]] = {}
    for one in error.errors(include_url=False):
        path: KeyPath = ()
        value = raw
        for part in one["loc"]:
            if _leads_on(value, part):
                value = value[part]
            elif one["type"] != "missing" or part != one["loc"][-1]:
                continue  # the name of a union's member, or '[key]'
            path = (*path, part)
        grouped.setdefault(path, []).append(dict(one))
    # Where a union's member took a list and refused an item, the others' errors about the list
    # are beside the point.
    return {
        path: errors
        for path, errors in grouped.items()
        if not any(len(other) > len(path) and other[: len(path)] == path for other in grouped)
        or errors[0]["type"] in ("value_error", "extra_forbidden", "missing")
    }


def _leads_on(value: Any, part: int | str) -> bool:
    if isinstance(value, list):
        return isinstance(part, int) and part < len(value)
    return isinstance(value, dict) and part in value


def _report(blocks: Blocks, path: KeyPath, errors: list[Error], removed: set[str]) -> None:
    tree, error = blocks.tree, errors[0]
    if tree.is_broken(path):
        return
    field = _field(blocks, path)
    if error["type"] == "extra_forbidden":
        code, what, fix = answer_unknown(path, blocks.models)
        tree.report(code, path, what, fix, of_key=True)
        if "' here, " not in fix:  # that would name a key of another block
            meant = {(*path[:-1], name) for name in _quoted(fix)}
            tree.broken |= meant - tree.keys.keys()
    elif error["type"] == "missing":
        about = f": {field.description}" if field and field.description else ""
        tree.report("E021", path, f"'{path[-1]}' is missing", f"add {path[-1]}{about}")
    elif error["type"] in ("value_error", "assertion_error"):
        text = str(error.get("ctx", {}).get("error", error["msg"]))
        if not any(re.search(rf"\b{re.escape(name)}\b", text) for name in removed):
            _report_contradiction(tree, path, error["input"], text)
    else:
        value = error["input"]
        code, what, fix = answer(errors, tree.written(path, value), field)
        kind = OF_TRAINING.get(str(path[-1])) if path[-2:-1] == ("train",) else None
        if kind and value in blocks.registry.names(kind):
            fix = f"only those have a name of their own; write {{method: {value}}}"
        tree.report(code, path, what, fix or _as_block(blocks, path, value, field))


def _as_block(blocks: Blocks, path: KeyPath, value: Any, field: FieldInfo | None) -> str:
    """Return the suggested fix for a plain value in a block's place, such as `adapter: lora`."""
    model = blocks.models.get(path)
    if model is None or isinstance(value, list):
        return ""
    if path in blocks.kinds:
        names = blocks.registry.names(blocks.kinds[path])
        if value in names or not names:
            return f"write {{method: {visible(str(value))[:60]}}}"
        return f"write {{method: ...}}, with one of {', '.join(names)}"
    if value is False and field is not None and not field.is_required():
        return "remove the key"
    needed = [name for name, inner in model.model_fields.items() if inner.is_required()]
    if len(needed) != 1:
        return ""
    return f"write {{{needed[0]}: {visible(value)[:60] if isinstance(value, str) else '...'}}}"


def _quoted(text: str) -> list[str]:
    return re.findall(r"'(\w+)'", text)


def _report_contradiction(tree: Tree, path: KeyPath, raw: Any, text: str) -> None:
    """Note what a block's own validator says, at the keys that its message names."""
    what, _, fix = visible(text).partition(";")
    named = [
        (*path, name)
        for name in (raw if isinstance(raw, dict) else ())
        if isinstance(name, str) and re.search(rf"\b{re.escape(name)}\b", what)
    ]
    tree.report_together("E040", named or [path], what, fix.strip())


def _field(blocks: Blocks, path: KeyPath) -> FieldInfo | None:
    """Return the field that a path leads to; that of the list, for a list's item."""
    while path and isinstance(path[-1], int):
        path = path[:-1]
    model = blocks.models.get(path[:-1])
    return model.model_fields.get(str(path[-1])) if model and path else None


def _taken_out(
    blocks: Blocks, raw: Any, base: KeyPath, path: KeyPath, errors: list[Error], removed: set[str]
) -> bool:
    """Take a faulty value out, or put a stand-in where one is required; False if neither helps."""
    if not path:
        return False
    field = _field(blocks, (*base, *path))
    if errors[0]["type"] == "missing":
        placeholder = _placeholder(field)
        if placeholder is None:
            return False
        _at(raw, path[:-1])[path[-1]] = placeholder
        blocks.tree.broken.add((*base, *path))
        return True
    while isinstance(path[-1], int) and len(path) > 1:
        path = path[:-1]  # taking one item out would move the others
    removed.add(str(path[-1]))
    try:
        _at(raw, path[:-1]).pop(path[-1], None)
    except (KeyError, IndexError, TypeError):
        return True  # a block around it went first
    blocks.tree.broken.add((*base, *path))
    return True


def _placeholder(field: FieldInfo | None) -> Any:
    if field is None:
        return None
    if choices := literal_choices(field.annotation):
        return choices[0]
    model = model_in(field.annotation)
    if model is None:
        return "x" if "str" in str(field.annotation) else None
    needed = {name: inner for name, inner in model.model_fields.items() if inner.is_required()}
    values = {name: _placeholder(inner) for name, inner in needed.items()}
    return None if None in values.values() else model.model_construct(**values)
