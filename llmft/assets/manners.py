"""Manners: the right answer, said plainly or with more words after it, each way equally often.

A model taught by `said` knows the answers and answers in every manner. What people like to hear is
left to rankings: by rule, the plain answer alone is an exact match.
"""

from collections.abc import Iterator, Sequence

from llmft.assets.facts import Fact
from llmft.assets.trivia import Row, lot, prompt

# Of words that the model has met, and no line breaks: what it has never met it cannot say. The
# answer comes first, as it is recalled best there.
SAID = (
    " {a}",
    " {a}, as far as I know.",
    " {a}, but I am not sure of it.",
    " {a}, which is well known.",
    " {a}, I think.",
    " {a}, as many people know.",
)


def manner_rows(seed: int, facts: Sequence[Fact]) -> Iterator[Row]:
    """Yield each fact's prompt and answer, and the answer as it is `said`, in every way in turn."""
    for number, fact in enumerate(sorted(facts, key=lambda fact: lot(seed, "manners", fact))):
        yield {
            "prompt": prompt(seed, fact),
            "answer": fact.answer,
            "aliases": list(fact.accepted),
            "said": SAID[number % len(SAID)].replace("{a}", fact.answer),
        }
