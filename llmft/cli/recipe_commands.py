"""Commands about a recipe: run it, check it, plan it, verify it.

Each imports what it needs inside, so that the light ones answer before torch could be loaded.
"""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from llmft.cli.app import (
    Answer,
    AnswerTokens,
    Json,
    PolicyStage,
    RecipePath,
    RunFolder,
    Set,
    Trust,
    allow,
    app,
    overrides,
)


@app.command()
def run(
    recipe: RecipePath,
    run_folder: Annotated[
        str | None,
        typer.Argument(help="With --resume: the run's folder; default: the newest unfinished run."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue a run that stopped, where it stopped.")
    ] = False,
    resume_auto: Annotated[
        bool,
        typer.Option(
            "--resume-auto",
            help="Continue the recipe's unfinished run, else start one (or: --resume=auto).",
        ),
    ] = False,
    smoke: Annotated[
        bool,
        typer.Option(
            "--smoke", help="Test the recipe in seconds: a tiny random model, few rows, no network."
        ),
    ] = False,
    from_: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="STAGE", help="Resume, and run this stage and all after it again."
        ),
    ] = None,
    until: Annotated[
        str | None, typer.Option(metavar="STAGE", help="Stop after this stage.")
    ] = None,
    set: Set = None,
    trust: Trust = None,
    output_dir: Annotated[
        str | None,
        typer.Option(
            help="Make the run's folder under this one; default: the recipe's output_dir."
        ),
    ] = None,
    accept_data_change: Annotated[
        bool, typer.Option("--accept-data-change", help="Resume although the rows have changed.")
    ] = False,
    accept_plugin_change: Annotated[
        bool,
        typer.Option("--accept-plugin-change", help="Resume although a plugin's code has changed."),
    ] = False,
    break_lock: Annotated[
        bool,
        typer.Option("--break-lock", help="Resume although a machine that is gone holds the lock."),
    ] = False,
    checkpoints_to: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Copy checkpoints and results there while it trains: hf://user/repository,"
            " s3://bucket/folder, file:///folder.",
        ),
    ] = None,
    resume_from: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="Continue a run from its copy there, on another machine."
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            min=2,
            max=100,
            metavar="N",
            help="Run it under N seeds, the recipe's and those after it: mean and deviation.",
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print errors only.")] = False,
    json: Json = False,
) -> Answer:
    """Train what a recipe says, and score it before and after."""
    if seeds is not None:
        from llmft.cli.commands.seeds import as_data, as_text, refuse_others, run_seeds

        refuse_others(
            {
                "--resume": resume,
                "--resume-auto": resume_auto,
                "--smoke": smoke,
                "--from": from_,
                "--until": until,
                "--checkpoints-to": checkpoints_to,
                "--resume-from": resume_from,
            }
        )
        sweep = run_seeds(recipe, overrides(set, output_dir), seeds, quiet=quiet, as_json=json)
        return as_data(sweep) if json else as_text(sweep)
    from llmft.cli.commands.run import run_recipe_file
    from llmft.runs.accepted import Accepted

    allow(trust)
    return run_recipe_file(
        recipe, overrides(set, output_dir), quiet=quiet, as_json=json, resume=resume,
        resume_auto=resume_auto,
        run_folder=run_folder, smoke=smoke, first=from_, last=until,
        accepted=Accepted(accept_data_change, accept_plugin_change, break_lock),
        copies_to=checkpoints_to, copied_at=resume_from,
    )  # fmt: skip


@app.command()
def new(
    recipe: Annotated[str, typer.Argument(help="The recipe to write, such as my.yaml.")],
    model: Annotated[
        str, typer.Option(metavar="MODEL", help="A model's folder or hub id, or embedded:model.")
    ],
    data: Annotated[
        str, typer.Option(metavar="DATA", help="A file of rows, a folder of files, or a hub id.")
    ],
    goal: Annotated[
        Literal["sft", "preferences", "reward", "rlhf", "classification"] | None,
        typer.Option(help="What to train; default: what the rows can teach."),
    ] = None,
    form: Annotated[
        Literal["chat", "preference", "unpaired", "instruction", "classification", "text"] | None,
        typer.Option(help="How to read the rows; default: what their columns say."),
    ] = None,
    adapter: Annotated[
        str, typer.Option(metavar="METHOD", help="What is trained, such as lora, dora or full.")
    ] = "lora",
    json: Json = False,
) -> Answer:
    """Write a first recipe for a file of rows, and show a row."""
    from pathlib import Path

    from llmft.cli.commands.new import Asked, as_json, as_text
    from llmft.cli.commands.new import new as written

    made = written(Path(recipe), Asked(model, data, goal or "", form or "", adapter))
    return as_json(made) if json else as_text(made)


@app.command()
def validate(
    recipes: Annotated[
        list[str], typer.Argument(help="Paths of recipes, or names of shipped ones.")
    ],
    set: Set = None,
    trust: Trust = None,
    model: Annotated[
        bool, typer.Option("--model", help="Also check against the model's config; loads torch.")
    ] = False,
    deep: Annotated[bool, typer.Option("--deep", hidden=True)] = False,  # its former name
    json: Json = False,
) -> Answer:
    """Report every mistake in recipes, without training."""
    from llmft.cli.commands.validate import as_text, check

    allow(trust)
    checked = check(recipes, set or [], model=model or deep)
    return {"recipes": checked} if json else as_text(checked)


@app.command()
def fetch(
    recipe: RecipePath,
    set: Set = None,
    trust: Trust = None,
    json: Json = False,
) -> Answer:
    """Fetch what a recipe takes from the hub into the cache."""
    from llmft.cli.commands.fetch import as_text
    from llmft.cli.commands.fetch import fetch as fetched

    allow(trust)
    answer = fetched(recipe, set or [])
    return answer if json else as_text(answer)


@app.command()
def plan(
    recipe: RecipePath,
    set: Set = None,
    trust: Trust = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            metavar="GPU",
            help="Plan for a GPU by its name, such as H100, or its memory, such as 24GB;"
            " default: this machine.",
        ),
    ] = None,
    gpus: Annotated[
        int,
        typer.Option(
            min=1,
            max=1024,
            metavar="N",
            help="The number of GPUs to plan for, with a process for each, as by torchrun.",
        ),
    ] = 1,
    measure: Annotated[
        float | None,
        typer.Option(
            min=1,
            max=86_400,
            metavar="SECONDS",
            help="Take a few real steps of each stage, for so long at most, to tell the time.",
        ),
    ] = None,
    json: Json = False,
) -> Answer:
    """Show a recipe's steps, time, memory, files and network use."""
    from llmft.cli.commands.plan import as_json, as_text
    from llmft.cli.commands.plan import plan as planned

    allow(trust)
    verdict = planned(recipe, set or [], gpu, measure, gpus)
    return as_json(verdict) if json else as_text(verdict)


@app.command()
def preview(
    recipe: RecipePath,
    rows: Annotated[
        int,
        typer.Option(
            min=0, max=1000, metavar="N", help="Rows shown of each kind that --only names."
        ),
    ] = 2,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND",
            help="Show only first, longest, cut, dropped or random rows. Repeatable.",
        ),
    ] = None,
    stage: Annotated[
        list[str] | None, typer.Option(metavar="STAGE", help="Show this stage only. Repeatable.")
    ] = None,
    html: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write a page to look at many rows, such as rows.html."),
    ] = None,
    set: Set = None,
    trust: Trust = None,
    json: Json = False,
) -> Answer:
    """Show rows as they will be trained on, and what is lost."""
    from llmft.cli.commands.preview import as_json, as_text
    from llmft.cli.commands.preview import preview as previewed

    allow(trust)
    name, found = previewed(
        recipe, set or [], rows=rows, only=only or [], stages=stage or [], html=html
    )
    return as_json(name, found) if json else as_text(found, html)


verify_app = typer.Typer(
    help="Test on your own recipe what the documentation promises.", rich_markup_mode=None
)
app.add_typer(verify_app, name="verify")


@verify_app.command("resume")
def verify_resume(
    recipe: RecipePath,
    kills: Annotated[
        int, typer.Option(min=1, max=1000, metavar="N", help="How often the run is killed.")
    ] = 3,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Chooses the moments.")] = 0,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1, max=100_000_000, metavar="N", help="Steps of each stage; default: the recipe's."
        ),
    ] = None,
    set: Set = None,
    trust: Trust = None,
    output_dir: Annotated[
        str | None, typer.Option(help="Work under this folder; default: the recipe's output_dir.")
    ] = None,
    json: Json = False,
) -> Answer:
    """Kill a run, resume it, and compare all its bits."""
    from llmft.cli.commands.verify import as_json, as_text, verify

    allow(trust)
    verdict = verify(recipe, overrides(set, output_dir), kills, seed, steps)
    return as_json(verdict) if json else as_text(verdict)


@verify_app.command("losses")
def verify_losses(
    recipe: RecipePath,
    against: Annotated[str, typer.Option(metavar="TRAINER", help="Whose trainer: trl.")] = "trl",
    stage: Annotated[str | None, typer.Option(help="The stage; default: the first.")] = None,
    steps: Annotated[
        int, typer.Option(min=1, max=1000, metavar="N", help="Optimiser steps; within an epoch.")
    ] = 5,
    set: Set = None,
    trust: Trust = None,
    json: Json = False,
) -> Answer:
    """Compare a stage's first steps with TRL's trainer."""
    from llmft.cli.commands.verify_losses import as_json, as_text, verify

    allow(trust)
    verdict = verify(recipe, set or [], against, stage, steps)
    return as_json(verdict) if json else as_text(verdict)


@verify_app.command("export")
def verify_export(
    run: RunFolder,
    target: Annotated[
        str, typer.Argument(help="What merge or export made of it, or an endpoint's URL.")
    ],
    stage: PolicyStage = None,
    prompts: Annotated[
        int, typer.Option(min=1, max=10_000, metavar="N", help="Held-out prompts that are asked.")
    ] = 8,
    max_new_tokens: AnswerTokens = 32,
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0.0, metavar="NATS", help="Of log-probabilities; default: by the data types."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The endpoint's model; default: the only one."),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            max=604_800.0,
            metavar="SECONDS",
            help="Of waiting for an endpoint, all its answers together; default: 1800.",
        ),
    ] = None,
    json: Json = False,
) -> Answer:
    """Prove that an export or an endpoint answers as the run does."""
    from llmft.cli.commands.verify_export import as_json, as_text, verify

    verdict = verify(run, target, stage, prompts, max_new_tokens, tolerance, model, timeout)
    return as_json(verdict) if json else as_text(verdict)
