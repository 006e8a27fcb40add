"""Wordings: the ways in which a fact is stated and asked."""

import re
from dataclasses import dataclass
from functools import cache

from llmft.assets.facts import FACTS_FOLDER, Fact

WORDINGS_FILE = FACTS_FOLDER / "wordings.txt"


@dataclass(frozen=True)
class Wordings:
    """The sentence patterns of one relation; {s} is the subject and {a} the answer."""

    statements: tuple[str, ...]
    questions: tuple[str, ...]


@cache
def load_wordings() -> dict[str, Wordings]:
    """Return the wordings of every relation.

    In the file a line '# relation' opens a relation, 'S ' is a statement, 'Q ' a question.
    """
    found: dict[str, dict[str, list[str]]] = {}
    relation = ""
    for line in filter(None, WORDINGS_FILE.read_text(encoding="utf-8").splitlines()):
        mark, text = line.split(" ", maxsplit=1)
        if mark == "#":
            relation = text
            found[relation] = {"S": [], "Q": []}
        else:
            found[relation][mark].append(text)
    return {
        relation: Wordings(tuple(kinds["S"]), tuple(kinds["Q"]))
        for relation, kinds in found.items()
    }


def _fill(wording: str, fact: Fact) -> str:
    text = wording
    for mark, value in (("{s}", fact.subject), ("{a}", fact.answer)):
        if value[0] in "aeiou":
            text = re.sub(rf"\b([Aa]) {mark}", rf"\1n {mark}", text)
        text = text.replace(mark, value)
    if text.endswith(".."):  # 'Washington, D.C.' at the end of a sentence
        text = text[:-1]
    return text[0].upper() + text[1:]


def state(fact: Fact, style: int) -> str:
    """Return the fact as a statement in the relation's style-th wording."""
    return _fill(load_wordings()[fact.relation].statements[style], fact)


def ask(fact: Fact, style: int) -> str:
    """Return the question about the fact in the relation's style-th wording."""
    return _fill(load_wordings()[fact.relation].questions[style], fact)
