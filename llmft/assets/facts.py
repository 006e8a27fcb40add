"""Facts: the tables that the embedded model knows and is asked about."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

FACTS_FOLDER = Path(__file__).parent / "facts"
_HEADER = ["subject", "answer", "aliases"]


@dataclass(frozen=True)
class Fact:
    """One thing that is true, with other right spellings of its answer."""

    relation: str
    subject: str
    answer: str
    aliases: tuple[str, ...]

    @property
    def accepted(self) -> tuple[str, ...]:
        """Return the answer and its aliases, the answer first."""
        return (self.answer, *self.aliases)


def read_table(path: Path) -> list[Fact]:
    """Return the facts of one table; its file name is the relation.

    Raises ValueError naming the line if the table is malformed.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    if not lines or lines[0].split("\t") != _HEADER:
        raise ValueError(f"{path.name}:1: header is not {_HEADER}")
    facts = []
    for number, line in enumerate(lines[1:], start=2):
        cells = line.split("\t")
        if len(cells) != len(_HEADER) or not cells[0] or not cells[1]:
            raise ValueError(f"{path.name}:{number}: want subject, answer and aliases")
        aliases = tuple(cells[2].split("|")) if cells[2] else ()
        facts.append(Fact(path.stem, cells[0], cells[1], aliases))
    return facts


@cache
def load_facts() -> tuple[Fact, ...]:
    """Return every fact of every table, ordered by relation, then as in the table."""
    tables = sorted(FACTS_FOLDER.glob("*.tsv"))
    return tuple(fact for table in tables for fact in read_table(table))
