"""Every error a user can meet: a place, a fact and a suggested fix, with a code and exit status.

The codes and their meaning are in `llmft.cli.error_codes`; `llmft explain CODE` prints them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Place:
    """A position in a text file; `line` and `column` count from 1, `source` is that whole line."""

    file: str
    line: int = 0
    column: int = 0
    source: str = ""
    width: int = 1

    def __str__(self) -> str:
        if not self.line:
            return self.file
        return (
            f"{self.file}:{self.line}:{self.column}" if self.column else f"{self.file}:{self.line}"
        )


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong: `what` states the fact, `fix` suggests a fix, `path` is the"
    " recipe key."""

    code: str
    what: str
    fix: str = ""
    path: str = ""
    place: Place | None = None

    def line(self) -> str:
        """Return the fault as one line: error[CODE] place path: what — fix: suggested fix."""
        where = " ".join(str(part) for part in (self.place, self.path) if part)
        head = f"error[{self.code}]" + (f" {where}:" if where else "")
        return f"{head} {self.what}" + (f" — fix: {self.fix}" if self.fix else "")

    def as_json(self) -> dict[str, Any]:
        """Return the fault as plain data, for `--json`."""
        place = self.place
        return {
            "code": self.code,
            "file": place.file if place else None,
            "line": place.line if place and place.line else None,
            "column": place.column if place and place.column else None,
            "path": self.path or None,
            "what": self.what,
            "fix": self.fix or None,
        }


class LlmftError(Exception):
    """A mistake or a mishap that the user can act on; everything else is a bug of ours."""

    exit_code = 1

    def __init__(
        self,
        code: str,
        what: str,
        *,
        fix: str = "",
        path: str = "",
        place: Place | None = None,
    ) -> None:
        self.faults: tuple[Fault, ...] = (Fault(code, what, fix, path, place),)
        super().__init__(self.faults[0].line())

    @classmethod
    def of(cls, faults: list[Fault]) -> LlmftError:
        """Return one error that carries several faults, so that all of them are shown at once."""
        first = faults[0]
        error = cls(first.code, first.what, fix=first.fix, path=first.path, place=first.place)
        error.faults = tuple(faults)
        error.args = ("\n".join(fault.line() for fault in faults),)
        return error


class RecipeError(LlmftError):
    """The recipe, or the command line, asks for something that cannot be."""

    exit_code = 2


class DataError(LlmftError):
    """The training or evaluation rows are not what the recipe says they are."""

    exit_code = 3


class LeftOutRow(DataError):
    """A row that a stated rule leaves out, whatever `on_bad_row` says: it is counted and told."""

    def __init__(self, origin: str, reason: str) -> None:
        super().__init__("E101", f"{origin}: {reason}")
        self.reason = reason


class EnvironmentFault(LlmftError):
    """The machine lacks something: disk, memory, a package, a lock, a network, a model's files."""

    exit_code = 4


class StageError(LlmftError):
    """Training itself failed: a loss or a gradient that is not finite, or a divergence."""

    exit_code = 5


class CheckpointError(LlmftError):
    """A checkpoint or a finished run cannot be used for what was asked."""

    exit_code = 6


class PluginError(LlmftError):
    """A plugin is broken, missing, or breaks the contract."""

    exit_code = 7


class TrustError(LlmftError):
    """Something that could run foreign code, or write outside the run folder, was refused."""

    exit_code = 8


class WaitsForPeople(LlmftError):
    """The run cannot go on before people have done their part; nothing is wrong."""

    exit_code = 9

    def __init__(self, what: str, *, fix: str = "") -> None:
        super().__init__("E305", what, fix=fix)


class Interrupted(LlmftError):
    """The run was asked to stop by a signal and did so at the end of a step."""

    def __init__(self, signal_number: int, what: str, *, fix: str = "") -> None:
        super().__init__("E130", what, fix=fix)
        self.exit_code = 128 + signal_number
