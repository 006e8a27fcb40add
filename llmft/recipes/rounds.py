"""Repeated stages, written out: round after round, each from the policy of the round before."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llmft.recipes.methods import Blocks
from llmft.recipes.references import references
from llmft.recipes.tree import KeyPath, visible
from llmft.system.nearest import did_you_mean

if TYPE_CHECKING:
    from llmft.recipes.recipe import Recipe, Stage

Rounds = Mapping[str, tuple[str, int]]
"""A stage that is repeated -> the name it has in the recipe, and its round, counted from 1."""


def check_repeat(recipe: Recipe, blocks: Blocks) -> None:
    """Note a fault where the repeated stages are not a row of the recipe's, or clash by name."""
    if recipe.repeat is None:
        return
    names = [stage.name for stage in recipe.stages]
    wanted = recipe.repeat.stages
    base: KeyPath = ("repeat", "stages")
    for index, name in enumerate(wanted):
        if name not in names:
            label = visible(name)[:80]
            what = f"no stage is called '{label}' (have: {', '.join(names)})"
            blocks.tree.report("E030", (*base, index), what, did_you_mean(name, names))
            return
    start = names.index(wanted[0])
    if names[start : start + len(wanted)] != wanted:
        what = "the repeated stages do not follow one another in the recipe in this order"
        fix = f"list them in the recipe's order: {', '.join(n for n in names if n in wanted)}"
        blocks.tree.report("E036", base, what, fix)
        return
    if recipe.repeat.rounds > 1 and not _passes_on(recipe, wanted, blocks):
        what = "no policy passes from one round to the next, so every round would be the same"
        fix = "let a repeated stage make a policy, and one start_from the policy before the rounds"
        blocks.tree.report("E036", base, what, fix)
        return
    taken = [round_name(n, r) for n in wanted for r in range(2, recipe.repeat.rounds + 1)]
    for name in sorted(set(taken) & set(names)):
        path: KeyPath = ("stages", names.index(name), "name")
        what = f"'{name}' is what a repeated stage is called in a later round"
        blocks.tree.report("E036", path, what, "use another name")


def _passes_on(recipe: Recipe, repeated: list[str], blocks: Blocks) -> bool:
    """Return whether a repeated stage makes a policy, and one takes a policy from before."""
    numbers = [n for n, stage in enumerate(recipe.stages) if stage.name in repeated]
    makers = [blocks.maker(number) for number in numbers]
    if None in makers:  # its method is not to be had, which is a fault of its own
        return True
    takes = any(
        r.stage in numbers and r.produces == "policy" and r.target not in repeated
        for r in references(recipe)
    )
    return takes and any(maker is not None and maker[1].produces == "policy" for maker in makers)


def round_name(name: str, number: int) -> str:
    """Return what a repeated stage is called in a round, counted from 1."""
    return name if number == 1 else f"{name}-{number}"


def round_seed(seed: int, number: int) -> int:
    """Return what a repeated stage draws by in a round after the first.

    By the first round's seed it would sample each prompt with the very same random numbers.
    """
    return random.Random(f"{seed} round {number}").getrandbits(31)


def written_out(recipe: Recipe, products: Mapping[str, str]) -> tuple[Recipe, Rounds]:
    """Return the recipe with every round as stages of its own, and which stage is of which round.

    products: what each stage produces. From the second round on, what a stage takes from the same
    round's stages is that round's, and a policy from before the rounds becomes the last round's.
    What goes to the hub is the last round's too.
    """
    if recipe.repeat is None:
        return recipe, {}
    repeated, rounds = recipe.repeat.stages, recipe.repeat.rounds
    policies = [name for name in repeated if products.get(name) == "policy"]
    named = references(recipe)
    stages: list[Stage] = []
    told: dict[str, tuple[str, int]] = {}
    for number, stage in enumerate(recipe.stages):
        if stage.name == repeated[-1]:
            block = recipe.stages[number - len(repeated) + 1 : number + 1]
            for turn in range(1, rounds + 1):
                for at, one in enumerate(block):
                    own = [r for r in named if r.stage == number - len(block) + 1 + at]
                    for reference in own if turn > 1 else ():
                        target = reference.target
                        if target in repeated:
                            target = round_name(target, turn)
                        elif reference.produces == "policy" and policies:
                            target = round_name(policies[-1], turn - 1)
                        one = _with(one, reference.path[2:], target)
                    name = round_name(one.name, turn)
                    told[name] = (one.name, turn)
                    seed = round_seed(one.own_seed(recipe.seed), turn) if turn > 1 else one.seed
                    stages.append(one.model_copy(update={"name": name, "seed": seed}))
        elif stage.name not in repeated:
            stages.append(stage)
    push = recipe.push_to_hub
    if push and push.stage in repeated:
        push = push.model_copy(update={"stage": round_name(push.stage, rounds)})
    return recipe.model_copy(update={"stages": stages, "repeat": None, "push_to_hub": push}), told


def _with(value: Any, path: KeyPath, new: Any) -> Any:
    """Return settings with the value at a path replaced."""
    if not path:
        return new
    part = path[0]
    if isinstance(value, list):
        return [_with(v, path[1:], new) if i == part else v for i, v in enumerate(value)]
    name = str(part)
    return value.model_copy(update={name: _with(getattr(value, name), path[1:], new)})
