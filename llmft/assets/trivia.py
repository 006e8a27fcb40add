"""Trivia: questions about facts, as rows in TriviaQA's schema."""

import hashlib
from functools import cache
from typing import Any

from llmft.api.text_metrics import normalize_answer
from llmft.assets.facts import Fact, load_facts
from llmft.assets.wordings import ask, load_wordings

EVAL_SHARE = 0.13
EVAL_LEAST = 4
Row = dict[str, Any]


def lot(seed: int, purpose: str, fact: Fact) -> int:
    """Return a number drawn for the fact, the same on every machine and Python version."""
    key = f"{seed}\t{purpose}\t{fact.relation}\t{fact.subject}"
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")


def split(seed: int) -> tuple[list[Fact], list[Fact]]:
    """Return the facts to train on and those held out, every relation in both."""
    train: list[Fact] = []
    held_out: list[Fact] = []
    for relation in load_wordings():
        facts = [fact for fact in load_facts() if fact.relation == relation]
        facts.sort(key=lambda fact: lot(seed, "split", fact))
        count = max(EVAL_LEAST, round(len(facts) * EVAL_SHARE))
        held_out += facts[:count]
        train += facts[count:]
    for part in (train, held_out):
        part.sort(key=lambda fact: lot(seed, "order", fact))
    return train, held_out


def question(seed: int, fact: Fact) -> str:
    """Return the one question that is asked about the fact."""
    styles = len(load_wordings()[fact.relation].questions)
    return ask(fact, lot(seed, "style", fact) % styles)


def prompt(seed: int, fact: Fact) -> str:
    """Return the question as the text a model is given."""
    return f"Question: {question(seed, fact)}\nAnswer:"


@cache
def _numbers() -> dict[Fact, int]:
    return {fact: number for number, fact in enumerate(load_facts())}


def trivia_row(seed: int, fact: Fact) -> Row:
    """Return the question and its accepted answers in TriviaQA's schema."""
    return {
        "question": question(seed, fact),
        "question_id": f"{fact.relation}-{_numbers()[fact]:04d}",
        "question_source": "llmft",
        "answer": {
            "value": fact.answer,
            "aliases": list(fact.accepted),
            "normalized_value": normalize_answer(fact.answer),
            "normalized_aliases": list(dict.fromkeys(map(normalize_answer, fact.accepted))),
            "type": "FreeForm",
            "matched_wiki_entity_name": "",
        },
    }
