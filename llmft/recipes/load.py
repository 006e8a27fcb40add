"""A recipe's file, read and checked as a whole before anything heavy is imported."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from llmft.api.errors import EnvironmentFault, Fault, LlmftError, PluginError, RecipeError
from llmft.recipes.binding import Binder
from llmft.recipes.blocks import find_blocks, validated
from llmft.recipes.checks import check_recipe
from llmft.recipes.job import Job, Source
from llmft.recipes.methods import Asked, Methods
from llmft.recipes.overrides import apply_overrides
from llmft.recipes.recipe import Recipe
from llmft.recipes.rounds import written_out
from llmft.recipes.secret import masked, masked_source, refuse_secrets
from llmft.recipes.textfile import read_text
from llmft.recipes.tree import Tree, visible
from llmft.recipes.yamlfile import parse


def load_recipe(
    path: str | os.PathLike[str],
    registry: Methods,
    overrides: Sequence[str] = (),
    *,
    other_runs: frozenset[Path] = frozenset(),
) -> Job:
    """Return the recipe in a file, checked as a whole and bound to its methods; imports no torch.

    other_runs: folders of runs whose recipes are being read, of which this is one.

    Raises one LlmftError with every fault that was found, each with its place: PluginError where
    only plugins are at fault, EnvironmentFault where only packages are missing, else RecipeError.
    """
    registry = registry if isinstance(registry, Asked) else Asked(registry)
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
    source = Source(os.fspath(path), tree.text, tuple(overrides), tree)
    return Binder(blocks.registry, other_runs).bind(whole, recipe, rounds, source)


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
