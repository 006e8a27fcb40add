"""The contract kit fails on reward functions that break the contract, and on these only."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable
from typing import Any

import pytest

from llmft.api import RewardConfig, RewardFunction
from llmft.testing import RewardContract

Catches = Callable[..., None]


class Vowels(RewardFunction[RewardConfig]):
    """The share of vowels in an answer."""

    method = "vowels"
    Config = RewardConfig

    def score(self, prompt: Any, completion: str, answers: Any) -> float:
        return sum(letter in "aeiou" for letter in completion) / max(len(completion), 1)


class TestVowels(RewardContract):
    method_class = Vowels


class DividesByTheLength(Vowels):
    """Fails on an empty answer."""

    def score(self, prompt: Any, completion: str, answers: Any) -> float:
        return 1 / len(completion)


class NeedsARightAnswer(Vowels):
    """Counts on an answer that may be unknown."""

    def score(self, prompt: Any, completion: str, answers: Any) -> float:
        return float(completion == answers[0])


class GivesNaN(Vowels):
    """Gives no number to an empty answer."""

    def score(self, prompt: Any, completion: str, answers: Any) -> float:
        return super().score(prompt, completion, answers) if completion else float("nan")


class GivesTruth(Vowels):
    """Gives True where a number is wanted."""

    def score(self, prompt: Any, completion: str, answers: Any) -> Any:
        return "a" in completion


class Moody(Vowels):
    """Scores by chance."""

    def score(self, prompt: Any, completion: str, answers: Any) -> float:
        return random.random()


class Tires(Vowels):
    """Scores each answer lower than the one before."""

    asked = 0

    def score(self, prompt: Any, completion: str, answers: Any) -> float:
        self.asked += 1
        return -float(self.asked)


class SortsTheAnswers(Vowels):
    """Changes the list of right answers."""

    def score(self, prompt: Any, completion: str, answers: Any) -> float:
        if isinstance(answers, list):
            answers.sort()
        return 0.0


class AsksTheNetwork(Vowels):
    """Asks a service for its score."""

    def score(self, prompt: Any, completion: str, answers: Any) -> float:
        with socket.socket() as asked:
            asked.settimeout(0.01)
            asked.connect(("127.0.0.1", 9))
        return 0.0


REWARDS: list[tuple[type[Any], str]] = [
    (DividesByTheLength, "test_it_gives_a_finite_number"),
    (NeedsARightAnswer, "test_it_gives_a_finite_number"),
    (GivesNaN, "test_it_gives_a_finite_number"),
    (GivesTruth, "test_it_gives_a_finite_number"),
    (Moody, "test_it_gives_the_same_each_time"),
    (Tires, "test_it_gives_the_same_each_time"),
    (SortsTheAnswers, "test_it_changes_nothing_that_it_is_given"),
    (AsksTheNetwork, "test_it_reaches_for_no_network_and_no_process"),
]


@pytest.mark.parametrize(("reward", "test"), REWARDS)
def test_the_kit_catches_a_wrong_reward_function(reward: Any, test: str, catches: Catches) -> None:
    catches(RewardContract, reward, test, ArithmeticError, IndexError)
