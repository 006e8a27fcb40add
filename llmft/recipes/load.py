"""A recipe's file, read and checked as a whole before anything heavy is imported."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from llmft.api.errors import EnvironmentFault, Fault, LlmftError, PluginError, RecipeError
from llmft.recipes.accepted import NOTHING, Accepted
from llmft.recipes.blocks import find_blocks, validated
from llmft.recipes.checks import check_recipe
from llmft.recipes.methods import Methods
from llmft.recipes.overrides import apply_overrides
from llmft.recipes.recipe import Recipe
from llmft.recipes.rounds import Rounds, written_out
from llmft.recipes.secret import masked, masked_source, refuse_secrets
from llmft.recipes.textfile import read_text
from llmft.recipes.tree import KeyPath, Tree, dotted, visible
from llmft.recipes.yamlfile import parse


@dataclass(frozen=True, slots=True)
class Loaded:
    """A recipe that passed every check, with what it was read from.

    recipe: with repeated stages written out, round after round; `written`: as the file has it.
    rounds: which stage is of which round. text: the file as given. overrides: the `--set` values,
    as given. smoke: a tiny random model stands in for the recipe's: the scores mean nothing.
    accepted: what the person who runs it accepts, and no recipe can.
    """

    recipe: Recipe
    written: Recipe
    rounds: Rounds
    path: str
    text: str
    overrides: tuple[str, ...]
    tree: Tree
    smoke: bool = False
    accepted: Accepted = NOTHING

    def index_of(self, stage: str) -> int:
        """Return where the file has a stage, by its name in whichever round."""
        name = self.rounds[stage][0] if stage in self.rounds else stage
        return [one.name for one in self.written.stages].index(name)

    def fault(self, code: str, path: KeyPath, what: str, fix: str = "") -> Fault:
        """Return a fault at a key of this recipe, for what is found out later."""
        return Fault(code, what, fix, dotted(path), self.tree.place(path))


def load_recipe(
    path: str | os.PathLike[str], registry: Methods, overrides: Sequence[str] = ()
) -> Loaded:
    """Return the recipe in a file, checked as a whole; imports nothing heavy.

    Raises one LlmftError with every fault that was found, each with its place: PluginError where
    only plugins are at fault, EnvironmentFault where only packages are missing, else RecipeError.
    """
    try:
        tree = parse(read_text(path), visible(os.fspath(path)))
    except RecipeError as error:
        raise RecipeError.of([_masked(fault, ()) for fault in error.faults]) from error.__cause__
    apply_overrides(tree, overrides)
    tree.data.setdefault("trackers", [{"method": "console"}, {"method": "jsonl"}])
    secrets = refuse_secrets(tree)
    blocks = find_blocks(tree, Recipe, registry)
    recipe = validated(blocks, Recipe)
    if recipe is not None:
        check_recipe(recipe, blocks)
        _check_push(recipe, tree)
    if tree.faults or recipe is None:
        raise _error([_masked(fault, secrets) for fault in tree.sorted_faults()])
    makers = {stage.name: blocks.maker(n) for n, stage in enumerate(recipe.stages)}
    products = {name: maker[1].produces for name, maker in makers.items() if maker}
    whole, rounds = written_out(recipe, products)
    return Loaded(whole, recipe, rounds, os.fspath(path), tree.text, tuple(overrides), tree)


def _check_push(recipe: Recipe, tree: Tree) -> None:
    if recipe.push_to_hub is None:
        return
    names = [stage.name for stage in recipe.stages]
    trained = [stage.name for stage in recipe.stages if stage.alignment]
    asked = recipe.push_to_hub.stage
    if not trained:
        what = "no stage trains an adapter that could be sent"
        tree.report("E030", ("push_to_hub",), what, "leave push_to_hub out")
    elif asked not in ("last", *trained):
        what = f"'{asked}' trains nothing" if asked in names else f"no stage is called '{asked}'"
        what = f"{what} (have: {', '.join(trained)})"
        tree.report("E030", ("push_to_hub", "stage"), what, "write one of these, or last")


def _error(faults: list[Fault]) -> LlmftError:
    """Return the error whose exit code says who is to act."""
    kinds = {fault.code[:2] for fault in faults}
    if kinds == {"E5"}:
        return PluginError.of(faults)
    return EnvironmentFault.of(faults) if kinds == {"E2"} else RecipeError.of(faults)


def _masked(fault: Fault, secrets: tuple[str, ...]) -> Fault:
    place = fault.place
    if place is not None:
        place = replace(place, source=masked_source(place.source, secrets))
    return replace(
        fault,
        what=masked(fault.what, secrets),
        fix=masked(fault.fix, secrets),
        path=masked(fault.path, secrets),
        place=place,
    )
