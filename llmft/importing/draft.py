"""A recipe in the making: which setting has which value, and what is to be said about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from llmft.api.errors import Place


class Said(Protocol):
    """What another tool was told: a flag of its command, or a key of its file; str: as written."""

    @property
    def place(self) -> Place:
        """Where it stands."""
        ...


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the draft.

    home: the path of a setting, or just a block where nothing is set. value: None where the flag
    is left out. why: the comment; '' where the value is the command's. raw: how a number was
    written.
    """

    home: str
    flag: Said | None
    value: Any = None
    why: str = ""
    raw: str = ""

    @property
    def is_set(self) -> bool:
        """Whether the recipe gets a value here."""
        return self.value is not None

    @property
    def block(self) -> str:
        """The block that the setting stands in; '' is the top of the recipe."""
        return self.home.rpartition(".")[0] if self.is_set else self.home


@dataclass
class Draft:
    """The settings found so far, in the order in which they are written."""

    entries: list[Entry] = field(default_factory=list)
    clashes: list[tuple[Said, Said]] = field(default_factory=list)
    """Two flags each that give one setting different values."""

    def get(self, home: str) -> Any:
        """Return the value of a setting, or None."""
        entry = self.entry(home)
        return entry.value if entry else None

    def entry(self, home: str) -> Entry | None:
        """Return the entry that sets a setting, or None."""
        return next((entry for entry in self.entries if entry.home == home and entry.is_set), None)

    def mentions(self, flag: Said) -> bool:
        """Return whether an entry is about a flag."""
        return any(entry.flag is flag for entry in self.entries)

    def sets(self, block: str) -> bool:
        """Return whether anything is set in a block."""
        return any(entry.is_set and entry.block == block for entry in self.entries)

    def set(
        self, home: str, value: Any, flag: Said | None = None, why: str = "", raw: str = ""
    ) -> None:
        """Set a setting, in place of what it was set to before."""
        entry = Entry(home, flag, value, why, raw)
        before = self.entry(home)
        if before is None:
            self.entries.append(entry)
            return
        if flag and before.flag and flag is not before.flag and value != before.value:
            self.clashes.append((before.flag, flag))
        self.entries[self.entries.index(before)] = entry

    def leave_out(self, block: str, flag: Said, why: str) -> None:
        """Say in a block that a flag is left out; it sets nothing any more."""
        self.entries = [entry for entry in self.entries if entry.flag is not flag]
        self.entries.append(Entry(block, flag, why=why))

    def changes(self) -> list[dict[str, Any]]:
        """Return what was not taken over as it was, as plain data."""
        return [
            {
                "flag": str(entry.flag) if entry.flag else None,
                "setting": entry.home if entry.is_set else None,
                "value": entry.value,
                "why": entry.why,
            }
            for entry in self.entries
            if entry.why
        ]

    def place(self, home: str) -> Place | None:
        """Return where the flag of a setting stands, or of the nearest block around it."""
        while home:
            entry = self.entry(home)
            if entry and entry.flag:
                return entry.flag.place
            home = home.rpartition(".")[0]
        return None
