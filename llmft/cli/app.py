"""The command line's program, and what its commands share."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

Answer = str | dict[str, Any]
"""What a command returns, to be printed: a text, or data that becomes JSON."""

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change the recipe, e.g. seed=3. Repeatable."),
]

app = typer.Typer(
    name="llmft",
    help="Fine-tune a language model from one recipe, and see an honest score.",
    epilog="--traceback, anywhere on the line, shows where an internal error came from.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def overrides(changes: list[str] | None, output_dir: str | None) -> list[str]:
    """Return what `--set` and `--output-dir` change in a recipe, as `--set` takes it."""
    folder = [f"output_dir={dumped(output_dir)}"] if output_dir else []
    return [*(changes or []), *folder]


def dumped(data: Any) -> str:
    """Return data as JSON, as commands print it."""
    return json.dumps(data, indent=2, default=str).replace("\x7f", "\\u007f")
