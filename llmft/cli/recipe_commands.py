"""Commands about a recipe: run it, check it, plan it, verify it.

Each imports what it needs inside, so that the light ones answer before torch could be loaded.
"""

from __future__ import annotations

from typing import Annotated

import typer

from llmft.cli.app import Answer, Json, Set, app, overrides


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="A recipe's path, or a shipped recipe's name.")],
    run_folder: Annotated[
        str | None, typer.Argument(help="With --resume: the run; default: the newest unfinished.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a run that stopped.")
    ] = False,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Try the recipe with a tiny random model, in seconds.")
    ] = False,
    from_: Annotated[
        str | None,
        typer.Option("--from", metavar="STAGE", help="Run this and what follows again."),
    ] = None,
    until: Annotated[
        str | None, typer.Option(metavar="STAGE", help="Stop after this stage.")
    ] = None,
    set: Set = None,
    output_dir: Annotated[
        str | None, typer.Option(help="Make the run folder under this folder.")
    ] = None,
    accept_data_change: Annotated[
        bool, typer.Option("--accept-data-change", help="Resume though the rows are others now.")
    ] = False,
    accept_plugin_change: Annotated[
        bool, typer.Option("--accept-plugin-change", help="Resume though a plugin's code changed.")
    ] = False,
    break_lock: Annotated[
        bool, typer.Option("--break-lock", help="Resume though a lost machine holds the folder.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show errors only.")] = False,
    json: Json = False,
) -> Answer:
    """Train what a recipe says, and score it before and after."""
    from llmft.cli.commands.run import run_recipe_file
    from llmft.runs.accepted import Accepted

    return run_recipe_file(
        recipe, overrides(set, output_dir), quiet=quiet, as_json=json, resume=resume,
        run_folder=run_folder, smoke=smoke, first=from_, last=until,
        accepted=Accepted(accept_data_change, accept_plugin_change, break_lock),
    )  # fmt: skip


@app.command()
def validate(
    recipes: Annotated[list[str], typer.Argument(help="Recipes: paths or shipped names.")],
    set: Set = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Check against the model's config too (loads torch).")
    ] = False,
    json: Json = False,
) -> Answer:
    """Find every mistake in recipes, without training."""
    from llmft.cli.commands.validate import as_text, check

    checked = check(recipes, set or [], model=deep)
    return {"recipes": checked} if json else as_text(checked)


@app.command()
def plan(
    recipe: Annotated[str, typer.Argument(help="A recipe's path, or a shipped recipe's name.")],
    set: Set = None,
    gpu: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Plan for a GPU of this memory, e.g. 24GB."),
    ] = None,
    json: Json = False,
) -> Answer:
    """Show what a recipe would train, take and write."""
    from llmft.cli.commands.plan import as_json, as_text
    from llmft.cli.commands.plan import plan as planned

    verdict = planned(recipe, set or [], gpu)
    return as_json(verdict) if json else as_text(verdict)


verify_app = typer.Typer(
    help="Hold a promise of the documentation against your own recipe.", rich_markup_mode=None
)
app.add_typer(verify_app, name="verify")


@verify_app.command("resume")
def verify_resume(
    recipe: Annotated[str, typer.Argument(help="A recipe's path, or a shipped recipe's name.")],
    kills: Annotated[int, typer.Option(min=1, max=1000, help="How often it is killed.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Which moments are chosen.")] = 0,
    steps: Annotated[
        int | None,
        typer.Option(min=1, max=100_000_000, help="Steps of each stage; default: the recipe's."),
    ] = None,
    set: Set = None,
    output_dir: Annotated[
        str | None, typer.Option(help="Work under this folder; default: the recipe's output_dir.")
    ] = None,
    json: Json = False,
) -> Answer:
    """Run a recipe, kill and resume it, and compare to the bit."""
    from llmft.cli.commands.verify import as_json, as_text, verify

    verdict = verify(recipe, overrides(set, output_dir), kills, seed, steps)
    return as_json(verdict) if json else as_text(verdict)
