"""`llmft run RECIPE --seeds N`: one recipe under several seeds, and how far its scores scatter."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmft.api.errors import RecipeError
from llmft.cli.commands import shipped
from llmft.cli.commands.output import table
from llmft.cli.commands.run import told_elsewhere
from llmft.recipes.load import load_recipe
from llmft.registry.registry import Registry
from llmft.system import fsio, launcher

if TYPE_CHECKING:
    from llmft.engine.session import Summary


@dataclass(frozen=True)
class Scatter:
    """A score of a stage over the seeds. sd: the sample's standard deviation (n - 1)."""

    stage: str
    metric: str
    mean: float
    sd: float
    values: tuple[float, ...]


@dataclass(frozen=True)
class Sweep:
    """The runs of a recipe, one for each seed, their scores, and a page with their curves."""

    seeds: tuple[int, ...]
    folders: tuple[str, ...]
    scatter: tuple[Scatter, ...]
    page: str


def run_seeds(
    recipe: str,
    overrides: Sequence[str],
    count: int,
    *,
    quiet: bool,
    as_json: bool,
) -> Sweep:
    """Run a recipe under `count` seeds, the recipe's own and those after it, one after another.

    Each is a run of its own, with its own folder. Raises RecipeError (E090) where several processes
    were started or a stage has a seed of its own, and what stops a run; those that ended before it
    stay on disk.
    """
    if launcher.launch().count > 1:
        raise RecipeError(
            "E090",
            "--seeds starts one run after another in one process, and a launcher started several",
            fix="start llmft run RECIPE --set seed=N for each seed",
        )
    path, registry = shipped.find(recipe), Registry.discover()
    job = load_recipe(path, registry, overrides)
    for number, stage in enumerate(job.recipe.stages):
        if stage.seed is not None:
            key = f"stages.{number}.seed"
            raise RecipeError(
                "E090",
                f"{key} is {stage.seed} in every run of --seeds, so that what '{stage.name}' draws"
                " would differ in none",
                fix=f"remove it, or add --set {key}=null",
            )
    first = job.recipe.seed
    jobs = [load_recipe(path, registry, [*overrides, f"seed={first + n}"]) for n in range(count)]
    done: list[Summary] = []
    with told_elsewhere(quiet, as_json):
        from llmft.engine.session import run_recipe

        for job in jobs:
            print(f"seed {job.recipe.seed}: run {len(done) + 1} of {count}", flush=True)
            done.append(run_recipe(job))
    folders = tuple(summary.folder for summary in done)
    seeds = tuple(job.recipe.seed for job in jobs)
    return Sweep(seeds, tuple(map(str, folders)), tuple(_scatter(done)), str(_page(folders)))


def refuse_others(options: Mapping[str, object]) -> None:
    """Raise RecipeError (E090) where an option is set that is about one run."""
    if given := [name for name, value in options.items() if value]:
        raise RecipeError("E090", f"--seeds and {given[0]} exclude each other", fix="keep one")


def _scatter(runs: Sequence[Summary]) -> list[Scatter]:
    found = []
    for stage, result in runs[0].stages.items():
        for metric in result.after:
            values = tuple(float(run.stages[stage].after[metric]) for run in runs)
            mean, sd = statistics.fmean(values), statistics.stdev(values)
            found.append(Scatter(stage, metric, mean, sd, values))
    return found


def _page(folders: Sequence[Path]) -> Path:
    """Write the runs' curves over each other, beside the first run's folder."""
    from llmft.reporting.comparison import compare, page

    path = folders[0].parent / f"{folders[0].name}-seeds.html"
    fsio.write_text(path, page(compare(folders)))
    return path


def as_data(sweep: Sweep) -> dict[str, Any]:
    """Return a sweep as plain data."""
    return {
        "seeds": list(sweep.seeds),
        "folders": list(sweep.folders),
        "scores": [asdict(one) for one in sweep.scatter],
        "page": sweep.page,
    }


def as_text(sweep: Sweep) -> str:
    """Return the scores of all seeds as a table, and where the curves are."""
    rows = [
        (
            f"{one.stage} {one.metric}",
            f"{one.mean:.4f} ± {one.sd:.4f}",
            *(f"{value:.4f}" for value in one.values),
        )
        for one in sweep.scatter
    ]
    header = ("score", f"mean ± sd, n={len(sweep.seeds)}", *map(str, sweep.seeds))
    parts = [table(header, rows)] if rows else ["no stage was scored"]
    return "\n\n".join([*parts, f"curves: {sweep.page}"])
