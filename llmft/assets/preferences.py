"""Preferences: a right answer beside one that is wrong, hedging or rambling."""

from llmft.api.text_metrics import normalize_answer
from llmft.assets.facts import Fact, load_facts
from llmft.assets.trivia import Row, lot, prompt

KINDS = ("wrong", "wrong", "hedging", "rambling")  # half of the pairs are wrong

HEDGING = (
    " I am not sure, but it may be {a}.",
    " It could be {a}, or maybe {w}; I cannot say.",
    " That is hard to know. Perhaps {a}.",
    " I do not know for certain.",
    " Some say {a} and some say {w}.",
)
RAMBLING = (
    " Well, this is something many people wonder about, and the answer is {a}, as it happens.",
    " {a}, which is quite well known, although there is of course a lot more to say about it.",
    " There are many things to say here, but to keep it short the answer is {a}, not {w}.",
    " The answer to that is {a}. It is not {w}. It has been {a} for as long as people remember.",
    " Let me think about that for a moment: it is {a}, yes, {a}, I think it is {a}.",
)


def wrong_answer(seed: int, fact: Fact) -> str:
    """Return an answer from the same relation that no accepted spelling of the fact allows."""
    right = set(map(normalize_answer, fact.accepted))
    wrong = {
        other.answer
        for other in load_facts()
        if other.relation == fact.relation
        and right.isdisjoint(map(normalize_answer, other.accepted))
    }
    ordered = sorted(wrong)
    return ordered[lot(seed, "wrong", fact) % len(ordered)]


def preference_row(seed: int, fact: Fact) -> Row:
    """Return a prompt with a chosen and a rejected answer; `kind` says what is bad about it."""
    kind = KINDS[lot(seed, "kind", fact) % len(KINDS)]
    wrong = wrong_answer(seed, fact)
    patterns = {"wrong": (" {w}",), "hedging": HEDGING, "rambling": RAMBLING}[kind]
    pattern = patterns[lot(seed, "pattern", fact) % len(patterns)]
    return {
        "prompt": prompt(seed, fact),
        "chosen": f" {fact.answer}",
        "rejected": pattern.replace("{a}", fact.answer).replace("{w}", wrong),
        "kind": kind,
    }
