"""Corpus: the plain English statements that the embedded model is pretrained on."""

import random
from collections.abc import Iterator

from llmft.assets.facts import Fact
from llmft.assets.wordings import load_wordings, state

SENTENCES_PER_DOCUMENT = (4, 12)


def every_statement(facts: tuple[Fact, ...]) -> Iterator[str]:
    """Yield each fact in each of its wordings."""
    for fact in facts:
        for style in range(len(load_wordings()[fact.relation].statements)):
            yield state(fact, style)


def one_round(facts: tuple[Fact, ...], rng: random.Random) -> Iterator[str]:
    """Yield documents that together state every fact once, in a random wording."""
    order = list(facts)
    rng.shuffle(order)
    start = 0
    while start < len(order):
        stop = start + rng.randint(*SENTENCES_PER_DOCUMENT)
        yield " ".join(
            state(fact, rng.randrange(len(load_wordings()[fact.relation].statements)))
            for fact in order[start:stop]
        )
        start = stop
