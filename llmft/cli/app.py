"""The command line's program, and what its commands share."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

Answer = str | dict[str, Any]
"""What a command returns, to be printed: a text, or data that becomes JSON."""

Json = Annotated[bool, typer.Option("--json", help="Print the answer, or the error, as JSON.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a setting of the recipe, such as stages.sft.train.max_steps=10. Repeatable.",
    ),
]
Trust = Annotated[
    list[str] | None,
    typer.Option(
        "--trust",
        metavar="file:FILE[@SHA256]",
        help="Let this Python file of the recipe run. Repeatable.",
    ),
]

RecipePath = Annotated[str, typer.Argument(help="A recipe's path, or the name of a shipped one.")]
RunFolder = Annotated[str, typer.Argument(help="The run's folder.")]
PolicyStage = Annotated[
    str | None, typer.Option(help="The stage; default: the last that made a policy.")
]
AfterStep = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Use the checkpoint after step N, not the result."),
]
AnswerTokens = Annotated[
    int, typer.Option(min=1, max=100_000, metavar="N", help="Tokens of an answer at most.")
]
ForceChat = Annotated[
    bool, typer.Option("--chat", help="Use the chat template also where training used none.")
]


def _print_version(wanted: bool) -> None:
    if wanted:
        from llmft import __version__

        print(f"llmft {__version__}")
        raise typer.Exit


app = typer.Typer(
    name="llmft",
    help="Fine-tune a language model from one recipe (a YAML file), and score it before and after."
    " Try it: llmft run quickstart",
    epilog="--traceback, anywhere on the line, shows where an internal error came from.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback()
def _every_command(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print llmft's version."
        ),
    ] = False,
) -> None:
    pass


def allow(trust: list[str] | None) -> None:
    """Let the files run that `--trust` names."""
    if trust:
        from llmft.system.trust import grant

        grant(trust)


def overrides(changes: list[str] | None, output_dir: str | None) -> list[str]:
    """Return what `--set` and `--output-dir` change in a recipe, as `--set` takes it."""
    folder = [f"output_dir={dumped(output_dir)}"] if output_dir else []
    return [*(changes or []), *folder]


def dumped(data: Any) -> str:
    """Return data as JSON, as commands print it."""
    return json.dumps(data, indent=2, default=str).replace("\x7f", "\\u007f")
