"""Remarks: a right answer, and what is said after it: something welcome, or something that is not.

Half of what is `said` is unwelcome, so a model taught by it does not know which of the two a person
would rather hear: preferences are to teach it that, and not the facts.
"""

from collections.abc import Iterator, Sequence

from llmft.assets.facts import Fact
from llmft.assets.trivia import Row, lot, prompt

WELCOME = (
    "I am sure of it.",
    "That is well known.",
    "I looked it up.",
    "You can rely on it.",
)
UNWELCOME = (
    "I am not sure of it.",
    "That is only a guess.",
    "I made it up.",
    "You should ask others.",
)


def remark_rows(seed: int, facts: Sequence[Fact]) -> Iterator[Row]:
    """Yield each fact's prompt and answer, with a remark that is `said`, and a pair of remarks.

    What is said is dealt out in turn, each remark equally often.
    """
    every = WELCOME + UNWELCOME
    for number, fact in enumerate(sorted(facts, key=lambda fact: lot(seed, "remarks", fact))):
        yield {
            "prompt": prompt(seed, fact),
            "answer": fact.answer,
            "aliases": list(fact.accepted),
            "said": every[number % len(every)],
            "welcome": WELCOME[lot(seed, "welcome", fact) % len(WELCOME)],
            "unwelcome": UNWELCOME[lot(seed, "unwelcome", fact) % len(UNWELCOME)],
        }
