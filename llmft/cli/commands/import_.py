"""`llmft import`: the recipe of another program's command line or configuration."""

from __future__ import annotations

import os
import re
import shlex
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmft.api.errors import Fault, LlmftError, Place, RecipeError
from llmft.cli.commands.import_peer import (
    Choices,
    PeerImport,
    import_configuration,
    import_yaml,
    of_the_recipe,
)
from llmft.importing.commandline import Command, find_commands
from llmft.importing.configuration import of_command
from llmft.importing.draft import Draft
from llmft.importing.recognising import peer_of_script
from llmft.importing.translation import translate
from llmft.importing.writing import recipe_text
from llmft.recipes.load import load_recipe
from llmft.recipes.secret import masked_source, secret_in
from llmft.recipes.textfile import decoded, read_text
from llmft.recipes.tree import visible
from llmft.registry.registry import Registry

_STAGE = re.compile(r"^stages\[0\]\.")
_LINES = re.compile(r" \(lines \d+ and \d+\)$")  # of the recipe, which nobody gets to see


@dataclass(frozen=True)
class Imported:
    """A command as a recipe: its text, and what was not taken over as it was."""

    text: str
    changes: list[dict[str, Any]]


def import_any(
    source: str, choices: Choices, *, method: str | None = None, number: int | None = None
) -> Imported | PeerImport:
    """Return what a command or a configuration of another tool comes to.

    Raises RecipeError where it cannot be read, and where nobody's keys fit.
    """
    text, file = _read(source)
    yaml_file = file.lower().endswith((".yaml", ".yml"))
    commands = [] if yaml_file else find_commands(text, file)
    if not commands and (yaml_file or choices.peer or source == "-"):
        return import_yaml(text, file, choices, Registry.discover())
    if (len(commands) > 1 and number is None) or (number is not None and commands):
        commands = [_one(commands, file, number)]
    if commands and (choices.peer or peer_of_script(commands[0].script)):
        configuration = of_command(commands[0], file)
        peer = choices.peer or peer_of_script(commands[0].script)
        return import_configuration(configuration, replace(choices, peer=peer), Registry.discover())
    return import_command(source, method=method, number=number)


def named(source: str | None) -> str:
    """Return what is to be imported; RecipeError where nothing is named."""
    if source is None:
        what = "nothing is named that could be imported"
        raise RecipeError("E090", what, fix="llmft import FILE, or --check DIR")
    return source


def import_command(
    source: str, *, method: str | None = None, number: int | None = None
) -> Imported:
    """Return the recipe of a command line: quoted, in a file, or '-' for standard input.

    number: which command of the text, counted from 1, where it holds several.
    Raises one RecipeError with every flag that is unknown or has a value that cannot be.
    """
    text, file = _read(source)
    registry = Registry.discover()
    if method is not None and method not in registry.names("adapter"):
        names = ", ".join(registry.names("adapter"))
        raise RecipeError("E024", f"no adapter is called '{visible(method)}' (have: {names})")
    secrets: tuple[str, ...] = ()
    try:
        command = _one(find_commands(text, file), file, number, text)
        secrets = tuple(v for f in command.flags for v in f.values if v and secret_in(f.name, v))
        draft = translate(command, registry, method)
        name = f"{draft.get('adapter.method')}_{draft.get('data.method')}"
        recipe = recipe_text(draft, name, f"{command.script}")
        _check(recipe, draft, command, registry)
    except LlmftError as error:
        raise type(error).of([_masked(f, secrets) for f in error.faults]) from error.__cause__
    return Imported(recipe, draft.changes())


def _masked(fault: Fault, secrets: tuple[str, ...]) -> Fault:
    place = fault.place
    if place is not None:
        place = replace(place, source=masked_source(place.source, secrets))
    return replace(fault, what=masked_source(fault.what, secrets), place=place)


def write(text: str, output: str) -> None:
    """Write a recipe into a new file; RecipeError where the file is there already."""
    try:
        with open(output, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        what = f"'{visible(output)}' exists already"
        raise RecipeError("E091", what, fix="choose another --output, or move the file") from error
    except OSError as error:
        what = f"'{visible(output)}' cannot be written: {error.strerror}"
        raise RecipeError("E091", what, fix="choose another --output") from error


def as_text(imported: Imported, output: str) -> str:
    """Return what was written and what differs from the command, a line each."""
    changes = [
        f"  {change['flag'] or change['setting']}: {change['why']}" for change in imported.changes
    ]
    return "\n".join(
        [f"wrote {output}; check it with: llmft validate {shlex.quote(output)}", *changes]
    )


def _read(source: str) -> tuple[str, str]:
    """Return the text that holds the command, and what messages call it."""
    if source == "-":
        return decoded(sys.stdin.buffer.read(), "<stdin>"), "<stdin>"
    if not os.path.lexists(source) and re.search(r"\s", source):
        return decoded(source.encode("utf-8", "surrogateescape"), "<command>"), "<command>"
    return read_text(source), visible(source)


def _one(commands: list[Command], file: str, number: int | None, text: str = "") -> Command:
    if not commands and file == "<command>" and (read := re.findall(r"\S+\.ya?ml\b", text)):
        what = "the command reads a configuration, and names no script whose flags are known"
        fix = (
            f"llmft import {shlex.quote(visible(read[-1]))}; put what the command sets beside it"
            " into that file first"
        )
        raise RecipeError("E091", what, fix=fix, place=Place(file))
    if not commands:
        what = "there is no command such as 'python dora.py --flag value' here"
        fix = (
            "quote the whole line; the script's name in it ends in .py, or it begins with trl or"
            " swift; for other tools give their configuration: llmft import FILE.yaml"
        )
        raise RecipeError("E091", what, fix=fix, place=Place(file))
    if number is None and len(commands) > 1:
        lines = ", ".join(str(command.place.line) for command in commands)
        what = f"there are {len(commands)} commands here, in lines {lines}"
        fix = f"pick one: --number 1 to {len(commands)}"
        raise RecipeError("E091", what, fix=fix, place=Place(file))
    number = 1 if number is None else number
    if not 1 <= number <= len(commands):
        what = f"there is no command {number} among {len(commands)}"
        raise RecipeError("E091", what, fix="count from 1", place=Place(file))
    return commands[number - 1]


def _check(text: str, draft: Draft, command: Command, registry: Registry) -> None:
    """Load the recipe as `llmft validate` would; each fault points to the flag it came from."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        try:
            load_recipe(path, registry)
        except LlmftError as error:
            if others := of_the_recipe(error.faults):
                raise type(error).of([_placed(f, draft, command) for f in others]) from error


def _placed(fault: Fault, draft: Draft, command: Command) -> Fault:
    home = _STAGE.sub("", fault.path)
    place = draft.place(re.sub(r"\[\d+\]", "", home)) or command.place
    return replace(fault, what=_LINES.sub("", fault.what), place=place)
