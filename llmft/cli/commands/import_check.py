"""`llmft import --check DIR`: what the configurations of a folder come to; nothing is written."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmft.api.errors import LlmftError, RecipeError
from llmft.cli.commands.import_peer import Choices, PeerImport, import_configuration, import_yaml
from llmft.cli.commands.output import table
from llmft.importing.commandline import find_commands
from llmft.importing.configuration import of_command
from llmft.importing.recognising import peer_of_script
from llmft.importing.verdicts import VERDICTS, blocks
from llmft.recipes.textfile import read_text
from llmft.recipes.tree import visible
from llmft.registry.registry import Registry

MAX_FILES = 10_000
_SHOWN = 30
UNREAD = "cannot be read"
NOTHING = "no configuration"
_YAML = (".yaml", ".yml")
_COMMANDS = (".sh", ".md", ".txt")


@dataclass(frozen=True)
class Row:
    """One configuration: the file, the peer, the verdict, and the keys that block it."""

    file: str
    peer: str
    verdict: str
    blocking: tuple[str, ...]
    said: str = ""


@dataclass(frozen=True)
class Report:
    """All configurations of a folder."""

    rows: tuple[Row, ...]

    def counts(self) -> dict[str, Counter[str]]:
        """Return, for each peer, how many configurations have each verdict."""
        found: dict[str, Counter[str]] = {}
        for row in self.rows:
            found.setdefault(row.peer or "-", Counter())[row.verdict] += 1
        return found

    def blocking(self) -> list[tuple[str, int, int]]:
        """Return what blocks: what, how many configurations, and of how many it alone does."""
        every: Counter[str] = Counter()
        alone: Counter[str] = Counter()
        for row in self.rows:
            every.update(row.blocking)
            if len(row.blocking) == 1:
                alone.update(row.blocking)
        return [(what, count, alone[what]) for what, count in every.most_common()]

    def as_json(self) -> dict[str, Any]:
        """Return the report as plain data."""
        return {
            "files": [
                {
                    "file": r.file,
                    "peer": r.peer or None,
                    "verdict": r.verdict,
                    "blocking": list(r.blocking),
                    "said": r.said or None,
                }
                for r in self.rows
            ],
            "verdicts": {peer: dict(counts) for peer, counts in self.counts().items()},
            "blocking": [
                {"what": what, "files": count, "alone": alone}
                for what, count, alone in self.blocking()
            ],
        }


def report(folder: str, choices: Choices) -> Report:
    """Return what every configuration and command in a folder comes to.

    Raises RecipeError where there is no such folder.
    """
    if not os.path.isdir(folder):
        raise RecipeError("E091", f"'{visible(folder)[:200]}' is not a folder", fix="name a folder")
    registry = Registry.discover()
    return Report(tuple(row for file in _files(folder) for row in _rows(file, choices, registry)))


def _files(folder: str) -> Iterator[Path]:
    found = 0
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(place) / name
            if path.suffix.lower() not in (*_YAML, *_COMMANDS):
                continue
            try:
                if not stat.S_ISREG(path.lstat().st_mode):
                    continue
            except OSError:
                continue
            found += 1
            if found > MAX_FILES:
                what = f"more than {MAX_FILES:,} files"
                raise RecipeError("E091", what, fix="name a folder inside it")
            yield path


def _rows(path: Path, choices: Choices, registry: Registry) -> Iterator[Row]:
    file = str(path)
    try:
        text = read_text(file)
        if path.suffix.lower() in _YAML:
            yield row_of(import_yaml(text, file, choices, registry))
            return
        commands = find_commands(text, file)
    except LlmftError as error:
        yield _unread(file, error)
        return
    for command in commands:
        peer = choices.peer or peer_of_script(command.script)
        if not peer:
            continue
        try:
            configuration = of_command(command, file)
            named = replace(choices, peer=peer)
            yield row_of(import_configuration(configuration, named, registry))
        except LlmftError as error:
            yield _unread(file, error)


def row_of(imported: PeerImport) -> Row:
    """Return an import as a row of the report."""
    blocking = dict.fromkeys(f.missing for f in imported.findings if blocks(f))
    return Row(imported.file, imported.peer, imported.verdict, tuple(blocking))


def _unread(file: str, error: LlmftError) -> Row:
    fault = error.faults[0]
    verdict = NOTHING if fault.code == "E091" else UNREAD
    if fault.code == "E051":
        return Row(
            file, "", "needs your decision", ("a value that only the shell knows",), fault.line()
        )
    return Row(file, "", verdict, (), fault.line())


def as_text(found: Report) -> str:
    """Return the table by verdict, and what blocks most."""
    counts = found.counts()
    verdicts = [*VERDICTS, *(v for v in (UNREAD, NOTHING) if any(v in c for c in counts.values()))]
    rows = [
        (peer, *(str(counts[peer][v]) for v in verdicts), str(sum(counts[peer].values())))
        for peer in sorted(counts)
    ]
    parts = [table(("peer", *verdicts, "all"), rows)]
    blocking = found.blocking()
    if blocking:
        shown = [(what, str(n), str(alone)) for what, n, alone in blocking[:_SHOWN]]
        parts.append(table(("what blocks", "files", "alone"), shown))
        if len(blocking) > _SHOWN:
            parts.append(f"and {len(blocking) - _SHOWN} more; --json has all, and each file")
    return "\n\n".join(parts)
