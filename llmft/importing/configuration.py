"""A configuration of another tool, whatever its form: its keys, each with its value and place."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from llmft.api.errors import Place, RecipeError
from llmft.importing.commandline import Command
from llmft.recipes.scalar import scalar
from llmft.recipes.tree import KeyPath, Tree, dotted, shown, visible
from llmft.recipes.yamlfile import parse

# Words that YAML 1.1, which the peers read, takes as true and false; YAML 1.2 does not.
_OLD_BOOLS = {
    **dict.fromkeys(("yes", "Yes", "YES", "on", "On", "ON"), True),
    **dict.fromkeys(("no", "No", "NO", "off", "Off", "OFF"), False),
}
_OCTAL = re.compile(r"[-+]?0[0-7_]+")
_INTERPOLATED = re.compile(r"\$\{[^{}]{0,200}\}|\$\{|\$[A-Z_]{2,}\b|\{\{[^{}]{0,200}\}\}")
_REFERENCE = re.compile(r"\$\{([A-Za-z_][\w.]{0,200})\}")
_PROCESSES = re.compile(
    r"(?:^|\s)(?:NPROC_PER_NODE=|--(?:num[_-]processes|nproc[_-]per[_-]node)[= ]+)([1-9]\d{0,3})\b"
)
# How many machines start so many each; accelerate's --num_processes counts those of all machines.
_NODES = re.compile(r"(?:^|\s)(?:NNODES=|--nnodes[= ]+)([1-9]\d{0,3})\b")
_OF_ALL = re.compile(r"(?:^|\s)--num[_-]processes[= ]")
_LAUNCH_FLAGS = ("num_processes", "accelerate_config", "config_file")


@dataclass(frozen=True, slots=True)
class Key:
    """A key of a file, or a flag of a command: its dotted name, its value, and where it stands.

    raw: a number as it was written. values: a flag's words.
    """

    name: str
    value: Any
    place: Place
    raw: str = ""
    values: tuple[str, ...] | None = None

    def __str__(self) -> str:
        if self.values is not None:
            words = " ".join(value or "''" for value in self.values)
            return visible(f"--{self.name} {words}".rstrip())[:160]
        return f"{visible(self.name)[:80]}: {self.raw or _short(self.value)}"

    @property
    def rule_name(self) -> str:
        """The name as tables have it: datasets[0].path is datasets[].path."""
        return re.sub(r"\[\d+\]", "[]", self.name)


@dataclass
class Configuration:
    """What a file or a command says, in order.

    trainer: what the command trains by, such as dpo; '' where it does not say. launcher: what
    starts the command. processes: how many, where the launcher says so. puzzles: keys whose values
    only an environment or another file knows.
    """

    file: str
    keys: dict[str, Key] = field(default_factory=dict)
    trainer: str = ""
    script: str = ""
    launcher: str = ""
    processes: int | None = None
    puzzles: dict[str, str] = field(default_factory=dict)
    folder: str = "."

    def get(self, name: str, default: Any = None) -> Any:
        """Return the value of a key, or the default where it is not there."""
        key = self.keys.get(name)
        return default if key is None else key.value

    def under(self, block: str) -> dict[str, Key]:
        """Return the keys inside a block, by their names from there on."""
        start = f"{block}."
        return {n.removeprefix(start): k for n, k in self.keys.items() if n.startswith(start)}

    def items(self, name: str) -> list[str]:
        """Return the names of a list's items: datasets[0], datasets[1]."""
        found = re.compile(rf"({re.escape(name)}\[\d+\])(?:\.|$)")
        return list(dict.fromkeys(m[1] for key in self.keys if (m := found.match(key))))


def of_yaml(text: str, file: str) -> Configuration:
    """Return the configuration in a YAML file.

    Raises RecipeError with every fault of reading: tags, merge keys, several documents, limits.
    """
    tree = parse(text, file)
    if tree.faults:
        raise RecipeError.of(tree.sorted_faults())
    configuration = Configuration(file, folder=os.path.dirname(file) or ".")
    for path, value in _leaves(tree):
        name = dotted(path)
        place = tree.place(path)
        raw = tree.raw.get(path, "")
        if _OCTAL.fullmatch(raw) or (isinstance(value, str) and _is_old_number(value, tree, path)):
            configuration.puzzles[name] = (
                f"'{visible(raw or value)[:40]}' is a number in YAML 1.1, which the peers read, and"
                " another one, or a word, in YAML 1.2"
            )
        configuration.keys[name] = Key(name, value, place, raw)
    _resolve(configuration)
    return configuration


def _leaves(tree: Tree) -> Iterator[tuple[KeyPath, Any]]:
    """Yield what the tree says: scalars, lists of scalars, and empty blocks, in order."""
    waiting: list[tuple[KeyPath, Any]] = [((), tree.data)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, dict) and (value or not path):
            waiting.extend(((*path, k), v) for k, v in reversed(value.items()))
        elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
            waiting.extend(((*path, n), v) for n, v in reversed(list(enumerate(value))))
        else:
            yield path, value


def _is_old_number(value: str, tree: Tree, path: KeyPath) -> bool:
    place = tree.place(path)
    quoted = place.source[place.column - 1 : place.column] in ("'", '"')
    return not quoted and re.fullmatch(r"\d+(?::[0-5]?\d)+|[-+]?\d[\d_]*_\d*", value) is not None


def _resolve(configuration: Configuration) -> None:
    """Put in what `${other.key}` means in this file; name every other interpolation."""
    keys = configuration.keys
    for name, key in list(keys.items()):
        if not isinstance(key.value, str) or ("$" not in key.value and "{{" not in key.value):
            continue
        whole = _REFERENCE.fullmatch(key.value)
        target = keys.get(whole[1]) if whole else None
        if target is not None and not (isinstance(target.value, str) and "$" in target.value):
            keys[name] = Key(name, target.value, key.place, target.raw)
        elif not name.endswith(("chat_template", "chat_template_jinja")) and (
            found := _INTERPOLATED.search(key.value)
        ):
            configuration.puzzles[name] = (
                f"what '{visible(found[0])[:60]}' stands for is not in the file, and an environment"
                " is never read"
            )


def of_command(command: Command, file: str) -> Configuration:
    """Return the configuration that a command's flags are."""
    said = f" {command.before} {command.launcher}"
    found, nodes = _PROCESSES.search(said), _NODES.search(said)
    configuration = Configuration(
        file, script=command.script, launcher=command.launcher, trainer=_trainer(command.script)
    )
    configuration.processes = int(found[1]) if found else None
    if configuration.processes and nodes and not _OF_ALL.search(said):
        configuration.processes *= int(nodes[1])
    for flag in command.flags:
        name = flag.name
        values = [scalar(value) for value in flag.values]
        value = values[0] if len(values) == 1 else list(flag.values) or True
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if name == "num_processes" and isinstance(value, int):
            configuration.processes = value
        raw = flag.values[0] if number else ""
        configuration.keys[name] = Key(name, value, flag.place, raw, flag.values)
    return configuration


def _trainer(script: str) -> str:
    """Return what a command trains by: the word after `trl` or `swift`, or the script's name."""
    words = script.split()
    return words[-1] if len(words) > 1 else script.rpartition("/")[2].removesuffix(".py")


def as_bool(value: Any) -> Any:
    """Return yes, no, on and off as YAML 1.1 reads them, and true and false in quotes."""
    if isinstance(value, str):
        words = {"true": True, "True": True, "false": False, "False": False, **_OLD_BOOLS}
        return words.get(value, value)
    return value


def _short(value: Any) -> str:
    if isinstance(value, list):
        items = ", ".join(visible(str(item))[:40] for item in value[:8])
        return f"[{items}{', ...' if len(value) > 8 else ''}]"
    return visible(value)[:80] if isinstance(value, str) else shown(value)
