"""How stages refer to each other: backwards, by name, to a stage that produces what is needed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from pydantic.fields import FieldInfo

from llmft.api import StageRef
from llmft.api.settings import Settings
from llmft.recipes.methods import OF_A_STAGE, Blocks, nested_methods
from llmft.recipes.tree import KeyPath, visible
from llmft.system.nearest import did_you_mean

if TYPE_CHECKING:
    from llmft.recipes.recipe import Recipe, Stage

ANOTHER_RUN = "run:"
"""How a reference to a stage of a finished run begins: run:<id>/<stage>."""
_OF_ANOTHER_RUN = re.compile(rf"{ANOTHER_RUN}\w[\w.-]{{0,199}}/[\w-]{{1,200}}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Reference:
    """A setting of stage number `stage` that names another stage, and what that must produce."""

    stage: int
    path: KeyPath
    target: str
    produces: str

    @property
    def is_of_another_run(self) -> bool:
        """Whether it names a stage of a finished run, and none of this one."""
        return self.target.startswith(ANOTHER_RUN)


def references(recipe: Recipe) -> list[Reference]:
    """Return every reference of every stage: `start_from`, and settings marked with StageRef."""
    found = []
    for number, stage in enumerate(recipe.stages):
        base: KeyPath = ("stages", number)
        if stage.start is not None:
            whole = isinstance(stage.start_from, str)
            path = (*base, "start_from") if whole else (*base, "start_from", "stage")
            found.append(Reference(number, path, stage.start, "policy"))
        for key in OF_A_STAGE:
            config = getattr(stage, key)
            for where, block in _with_nested(config, (*base, key)) if config else ():
                for name, field in type(block).model_fields.items():
                    for produces in _marks(field):
                        for path, target in _targets((*where, name), getattr(block, name, None)):
                            found.append(Reference(number, path, target, produces))
    return found


def _with_nested(config: Settings, path: KeyPath) -> Iterator[tuple[KeyPath, Settings]]:
    """Yield a block and those of the methods that it chooses, each with its path."""
    yield path, config
    for where, _, inner in nested_methods(config, path):
        yield where, inner


def stage_references(config: Settings) -> dict[str, str]:
    """Return the stages that a block's settings name, by the setting's name."""
    return {
        name: value
        for name, field in type(config).model_fields.items()
        if _marks(field) and isinstance(value := getattr(config, name, None), str)
    }


def row_references(data: Settings) -> list[str]:
    """Return the stages that a data block and its sources take their rows from."""
    return [
        name for _, block in _with_nested(data, ()) for name in stage_references(block).values()
    ]


def stages_read(stage: Stage) -> list[str]:
    """Return the stages that a stage reads: the one it starts from, and those its settings name."""
    found = [stage.start] if stage.start else []
    for config in (stage.work, stage.data):
        for _, block in _with_nested(config, ()) if config else ():
            found += stage_references(block).values()
    return found


def _marks(field: FieldInfo) -> list[str]:
    """Return what StageRef marks on a field ask for, wherever in its annotation they stand."""
    waiting: list[Any] = [*field.metadata, field.annotation]
    found = []
    while waiting:
        part = waiting.pop()
        if isinstance(part, StageRef):
            found.append(part.produces)
        waiting.extend(getattr(part, "__metadata__", ()))
        waiting.extend(get_args(part))
    return found[:1]


def _targets(path: KeyPath, value: Any) -> Iterator[tuple[KeyPath, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            if isinstance(item, str):
                yield (*path, index), item


def check_references(recipe: Recipe, blocks: Blocks) -> None:
    """Note a fault for every stage name used twice, and every reference that leads nowhere."""
    tree = blocks.tree
    names = [stage.name for stage in recipe.stages]
    for name, times in Counter(names).items():
        if times > 1:
            paths: list[KeyPath] = [
                ("stages", number, "name") for number, other in enumerate(names) if other == name
            ]
            if not tree.touches_broken(paths):
                what = f"{times} stages are called '{name}'"
                tree.report_together("E032", paths[::-1], what, "give each its own name")
    first: dict[str, str] = {}
    for number, name in enumerate(names):
        if first.setdefault(name.casefold(), name) != name:
            other = first[name.casefold()]
            what = (
                f"'{name}' is '{other}' but for capitals, and some systems have one folder for both"
            )
            tree.report("E032", ("stages", number, "name"), what, "use another name")
    every = references(recipe)
    for reference in every:
        if tree.is_broken(reference.path) or _OF_ANOTHER_RUN.fullmatch(reference.target):
            continue
        if reference.is_of_another_run:
            what = f"'{visible(reference.target)[:80]}' does not name a stage of a run"
            tree.report("E035", reference.path, what, "write run:<id>/<stage>")
        elif reference.target not in names:
            _unknown(reference, names, blocks)
        elif names.index(reference.target) >= reference.stage:
            _forward(reference, names, every, blocks)
        else:
            _check_product(reference, recipe, blocks)


def _unknown(reference: Reference, names: list[str], blocks: Blocks) -> None:
    if any(blocks.tree.is_broken(("stages", n, "name")) for n in range(len(names))):
        return  # the stage that is meant may be the one whose name is wrong
    label = visible(reference.target)[:80]
    earlier = names[: reference.stage]
    what = f"no earlier stage is called '{label}' (have: {', '.join(earlier) or 'none'})"
    fix = did_you_mean(reference.target, earlier) or (
        "name one of these" if earlier else "put the stage before this one"
    )
    blocks.tree.report("E030", reference.path, what, fix)


def _forward(
    reference: Reference, names: list[str], every: list[Reference], blocks: Blocks
) -> None:
    own, target = names[reference.stage], reference.target
    if own == target:
        what = f"stage '{own}' refers to itself"
        blocks.tree.report("E031", reference.path, what, "name an earlier stage")
        return
    links: dict[str, list[str]] = {}
    for other in every:
        links.setdefault(names[other.stage], []).append(other.target)
    circle = _way(target, own, links)
    if circle:
        what = f"the stages refer to each other: {' -> '.join([own, *circle])}"
        blocks.tree.report("E031", reference.path, what, "remove one of these references")
        return
    what = f"'{target}' comes later than '{own}'; a stage may name earlier ones only"
    blocks.tree.report("E031", reference.path, what, f"move '{target}' before '{own}'")


def _way(start: str, end: str, links: dict[str, list[str]]) -> list[str]:
    """Return the stages from start to end along references, or nothing where there is no way."""
    waiting, seen = [[start]], {start}
    while waiting:
        way = waiting.pop(0)
        if way[-1] == end:
            return way
        for target in links.get(way[-1], ()):
            if target not in seen:
                seen.add(target)
                waiting.append([*way, target])
    return []


def _check_product(reference: Reference, recipe: Recipe, blocks: Blocks) -> None:
    names = [stage.name for stage in recipe.stages]
    number = names.index(reference.target)
    made_by = blocks.maker(number)
    if made_by is None or made_by[1].produces == reference.produces:
        return
    path, cls = made_by
    makers = [
        name
        for index, name in enumerate(names[: reference.stage])
        if (maker := blocks.maker(index)) and maker[1].produces == reference.produces
    ]
    wanted, made = _words(reference.produces), _words(cls.produces)
    what = f"stage '{reference.target}' produces {_one(made)}, and {_one(wanted)} is needed here"
    fix = (
        f"name {' or '.join(makers)}" if makers else f"add a stage before that makes {_one(wanted)}"
    )
    blocks.tree.report_together("E033", [reference.path, (*path, "method")], what, fix)


def _words(product: str) -> str:
    return product.replace("_", " ")


def _one(product: str) -> str:
    return product if product.endswith("s") else f"a {product}"


def start_of(recipe: Recipe, number: int) -> int | None:
    """Return the number of the stage that this one starts from, if it is of this recipe."""
    target = recipe.stages[number].start
    names = [stage.name for stage in recipe.stages[:number]]
    return names.index(target) if target in names else None


def adapter_stage(recipe: Recipe, number: int) -> tuple[int, Stage] | None:
    """Return the stage whose adapter block describes what stage `number` trains, if it is here."""
    while True:
        stage = recipe.stages[number]
        if stage.adapter is not None:
            return number, stage
        earlier = start_of(recipe, number)
        if earlier is None:
            return None
        number = earlier
