"""The contract kit fails on metrics that break the contract, and on these only."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable
from typing import Any

import pytest

from llmft.api import MetricConfig, MetricFunction
from llmft.testing import MetricContract

Catches = Callable[..., None]


class Overlap(MetricFunction[MetricConfig]):
    """The share of right answers that are in an answer."""

    method = "overlap"
    Config = MetricConfig

    def score(self, answer: Any) -> Any:
        found = sum(right in answer.answer for right in answer.references)
        return found / max(len(answer.references), 1)


class WordErrors(Overlap):
    """Words of an answer that no right answer has; fewer are better."""

    method = "word_errors"
    greater_is_better = False
    value_range = (0.0, float("inf"))

    def values(self) -> tuple[str, ...]:
        return ("errors", "words")

    def score(self, answer: Any) -> Any:
        said = answer.answer.split()
        right = " ".join(answer.references).split()
        return {"errors": sum(word not in right for word in said), "words": len(said)}


class Repeats(MetricFunction[MetricConfig]):
    """The share of answers that are the same as another."""

    method = "repeats"
    Config = MetricConfig
    needs_references = False
    greater_is_better = False

    def score_corpus(self, answers: Any) -> Any:
        return 1 - len({one.answer for one in answers}) / len(answers)


class TestOverlap(MetricContract):
    method_class = Overlap


class TestWordErrors(MetricContract):
    method_class = WordErrors


class TestRepeats(MetricContract):
    method_class = Repeats


class InPercent(Overlap):
    """Gives 0 to 100, and says 0 to 1."""

    def score(self, answer: Any) -> Any:
        return 100 * super().score(answer)


class DividesByTheLength(Overlap):
    """Fails on an empty answer."""

    def score(self, answer: Any) -> Any:
        return 1 / len(answer.answer)


class GivesNaN(Overlap):
    """Has no value for an empty answer."""

    def score(self, answer: Any) -> Any:
        return super().score(answer) if answer.answer else float("nan")


class GivesText(Overlap):
    """Gives its value as it is shown."""

    def score(self, answer: Any) -> Any:
        return f"{super().score(answer):.2f}"


class ForgetsAValue(WordErrors):
    """Leaves a value out where it is zero."""

    def score(self, answer: Any) -> Any:
        return {name: value for name, value in super().score(answer).items() if value}


class OneForTwo(WordErrors):
    """Gives a number where two are named."""

    def score(self, answer: Any) -> Any:
        return 1.0


class NamesNothing(Overlap):
    """Names a value with what no score can be called."""

    def values(self) -> Any:
        return ("F 1",)


class NamesTwice(Overlap):
    """Names two values alike."""

    def values(self) -> Any:
        return ("f1", "f1")


class WrongWay(WordErrors):
    """Counts errors, and says that more are better."""

    greater_is_better = True


class Moody(Overlap):
    """Gives a value by chance."""

    def score(self, answer: Any) -> Any:
        return random.random()


class Remembers(Overlap):
    """Gives the mean of all it has seen so far."""

    seen = 0.0
    asked = 0

    def score(self, answer: Any) -> Any:
        self.asked += 1
        self.seen += super().score(answer)
        return self.seen / self.asked


class LooksAtTheFirst(Repeats):
    """Depends on which answer comes first."""

    def score_corpus(self, answers: Any) -> Any:
        return 1 / (1 + len(answers[0].answer))


class SortsTheReferences(Overlap):
    """Changes the list of right answers."""

    def score(self, answer: Any) -> Any:
        if isinstance(answer.references, list):
            answer.references.sort()
        return 0.0


class AsksTheNetwork(Overlap):
    """Asks a service for its value."""

    def score(self, answer: Any) -> Any:
        with socket.socket() as asked:
            asked.settimeout(0.01)
            asked.connect(("127.0.0.1", 9))
        return 0.0


class Both(Overlap):
    """Scores one by one and all together."""

    def score_corpus(self, answers: Any) -> Any:
        return 0.0


class Neither(MetricFunction[MetricConfig]):
    """Scores nothing."""

    method = "neither"
    Config = MetricConfig


class NoRange(Overlap):
    """Has a range of one number."""

    value_range = (1.0,)  # type: ignore[assignment]


EACH = "test_each_answer_gets_values_within_its_range"
METRICS: list[tuple[type[Any], str]] = [
    (InPercent, EACH),
    (DividesByTheLength, EACH),
    (GivesNaN, EACH),
    (GivesText, EACH),
    (ForgetsAValue, EACH),
    (OneForTwo, EACH),
    (NamesNothing, "test_its_values_have_names"),
    (NamesTwice, "test_its_values_have_names"),
    (WrongWay, "test_a_right_answer_is_no_worse_than_nonsense"),
    (Moody, "test_it_gives_the_same_each_time_and_in_any_order"),
    (Remembers, "test_it_gives_the_same_each_time_and_in_any_order"),
    (LooksAtTheFirst, "test_it_gives_the_same_each_time_and_in_any_order"),
    (SortsTheReferences, "test_it_changes_nothing_that_it_is_given"),
    (AsksTheNetwork, "test_it_reaches_for_no_network_and_no_process"),
    (Both, "test_the_class_declares_what_its_kind_must"),
    (Neither, "test_the_class_declares_what_its_kind_must"),
    (NoRange, "test_the_class_declares_what_its_kind_must"),
]


@pytest.mark.parametrize(("metric", "test"), METRICS)
def test_the_kit_catches_a_wrong_metric(metric: Any, test: str, catches: Catches) -> None:
    catches(MetricContract, metric, test, ArithmeticError)
