"""Commands about a finished run: ask it, score with it, rank its answers, publish it.

Each imports what it needs inside, so that the light ones answer before torch could be loaded.
"""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from llmft.cli.app import Answer, Json, app


@app.command()
def generate(
    run: Annotated[str, typer.Argument(help="The run's folder.")],
    questions: Annotated[list[str], typer.Argument(metavar="QUESTION...", help="Each in quotes.")],
    stage: Annotated[
        str | None,
        typer.Option(help="The stage that answers; default: the last that made a policy."),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, max=100_000, metavar="N", help="Tokens of an answer at most.")
    ] = 64,
    no_adapter: Annotated[
        bool, typer.Option("--no-adapter", help="Let the base model answer, without the adapter.")
    ] = False,
    json: Json = False,
) -> Answer:
    """Answer questions with a trained model."""
    from llmft.cli.commands.generate import answers

    found = answers(run, questions, stage, max_new_tokens, adapter=not no_adapter)
    return {"answers": found} if json else "\n".join(item["answer"] for item in found)


@app.command()
def score(
    run: Annotated[str, typer.Argument(help="The run's folder.")],
    file: Annotated[
        str,
        typer.Argument(
            help="Records with text, or prompt and completion, or prompt, chosen and rejected"
            " (.jsonl, .json, .csv, .parquet)."
        ),
    ],
    stage: Annotated[
        str | None,
        typer.Option(help="The stage that scores; default: the last that made a reward model."),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write the records here; default: print them as JSON."),
    ] = None,
    json: Json = False,
) -> Answer:
    """Score texts with a trained reward model."""
    from llmft.cli.commands.score import as_text, scores

    found = scores(run, file, stage, output)
    return {"scores": found} if json else as_text(found, output)


@app.command()
def rank(
    target: Annotated[str, typer.Argument(help="A run's folder, or a file of samples.")],
    rater: Annotated[
        str | None, typer.Option(metavar="NAME", help="Who ranks; default: your user name.")
    ] = None,
    port: Annotated[
        int,
        typer.Option(
            min=0, max=65535, metavar="PORT", help="Port of the page; 0: any that is free."
        ),
    ] = 0,
    terminal: Annotated[
        bool, typer.Option("--terminal", help="Rank in the terminal, not on a page.")
    ] = False,
    no_open: Annotated[bool, typer.Option("--no-open", help="Do not open a browser.")] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Samples to rank this time at most.")
    ] = None,
    status: Annotated[
        bool, typer.Option("--status", help="Show who has ranked how much, and their agreement.")
    ] = False,
    export: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write the preferences to this file.")
    ] = None,
    pairs: Annotated[
        Literal["all", "best_worst"], typer.Option(help="Which pairs each ranking gives.")
    ] = "all",
    judge: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Let a reward function, or the reward model of a stage, rank."
        ),
    ] = None,
    json: Json = False,
) -> Answer:
    """Rank a model's answers, on a page or in the terminal."""
    from llmft.cli.commands import rank as ranking

    if judge:
        from llmft.cli.commands.judge import judge as let_judge

        let_judge(target, judge)
    if export:
        written = ranking.export(target, export, pairs)
        return written if json else ranking.export_as_text(written)
    if status or judge:
        told = ranking.status(target, pairs)
    else:
        told = ranking.rank(
            target, rater, port=port, terminal=terminal, open_page=not no_open, limit=limit,
            as_json=json,
        )  # fmt: skip
    return told if json else ranking.as_text(told)


@app.command()
def push(
    run: Annotated[str, typer.Argument(help="The run's folder.")],
    stage: Annotated[
        str | None,
        typer.Option(help="The stage to send; default: the recipe's, else the last that trains."),
    ] = None,
    repo_id: Annotated[
        str | None,
        typer.Option(help="The repository, such as my-name/my-adapter; default: the recipe's."),
    ] = None,
    public: Annotated[
        bool,
        typer.Option("--public", help="Make a new repository public; default: as the recipe says."),
    ] = False,
    json: Json = False,
) -> Answer:
    """Send an adapter with its model card to the hub."""
    from llmft.cli.commands.push import as_text, pushed

    sent = pushed(run, stage, repo_id, public=public)
    return sent if json else as_text(sent)


@app.command()
def merge(
    run: Annotated[str, typer.Argument(help="The run's folder.")],
    output: Annotated[
        str, typer.Option(metavar="DIR", help="The model's folder; must not be there yet.")
    ],
    stage: Annotated[
        str | None, typer.Option(help="The stage; default: the last that made a policy.")
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="Of the weights that are written; default: as the base's files."),
    ] = None,
    max_shard_size: Annotated[
        str, typer.Option(metavar="SIZE", help="Of one file of weights at most.")
    ] = "5GB",
    json: Json = False,
) -> Answer:
    """Write a run's adapter and its base as one complete model."""
    from llmft.cli.commands.merge import as_text, merged

    made = merged(run, output, stage, dtype, max_shard_size)
    return made if json else as_text(made)
