"""The contract of a reward function, as tests: a finite, repeatable number for whatever comes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import pytest

from llmft import api
from llmft.api.kinds import Kind
from llmft.testing.config_checks import SettingsContract
from llmft.testing.outside import reaching_outside

PROMPTS: tuple[api.Prompt, ...] = (
    "Question: Where is Oslo?\nAnswer:",
    ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where is Oslo?"}),
)
COMPLETIONS = (
    "In Norway.",
    " Norway\nThat is well known.",
    "",
    " \n\t",
    "norway " * 4_000,
    "\n" * 5_000,
    "ß🙂 e\u0301 \u202enorway\u202c \u0000 \ufeff\ud7ff",
    "{Norway} [Norway] %s \\1 (",
)
ANSWERS: tuple[tuple[str, ...], ...] = ((), ("Norway",), ("Norway", "Kingdom of Norway"), ("",))


class RewardContract(SettingsContract):
    """Checks that a reward function scores every answer, each time the same, by itself alone.

    The answers are ordinary, empty, very long and of odd characters; the right ones may be unknown.
    """

    kind: ClassVar[Kind] = "reward"

    def test_it_gives_a_finite_number(self, settings: Mapping[str, Any]) -> None:
        function = self.make(settings)
        for prompt, completion, answers in _cases():
            score = function.score(prompt, completion, answers)
            said = f"{score!r} for {completion[:40]!r}, where {answers} are right"
            number = isinstance(score, int | float) and not isinstance(score, bool)
            assert number, f"no plain number: {said}"
            assert math.isfinite(score), f"not finite: {said}"

    def test_it_gives_the_same_each_time(self, settings: Mapping[str, Any]) -> None:
        cases = list(_cases())
        function, another = self.make(settings), self.make(settings)
        first = [function.score(*case) for case in cases]
        assert [function.score(*case) for case in cases] == first, "a second time gives others"
        backwards = [another.score(*case) for case in reversed(cases)][::-1]
        assert backwards == first, "another instance, asked in another order, gives others"

    def test_it_changes_nothing_that_it_is_given(self, settings: Mapping[str, Any]) -> None:
        turns: Any = [{"role": "user", "content": "Where is Oslo?"}]
        answers = ["Norway", "Kingdom of Norway"]
        self.make(settings).score(turns, "In Norway.", answers)
        assert turns == [{"role": "user", "content": "Where is Oslo?"}], "the prompt was changed"
        assert answers == ["Norway", "Kingdom of Norway"], "the right answers were changed"

    def test_it_reaches_for_no_network_and_no_process(self, settings: Mapping[str, Any]) -> None:
        # It is asked thousands of times in a run, on machines that may have no network.
        with reaching_outside() as reached:
            function = self.make(settings)
            for case in _cases():
                function.score(*case)
        if reached:
            pytest.fail(f"the reward function reaches outside: {sorted(set(reached))}")


def _cases() -> Iterator[tuple[api.Prompt, str, Sequence[str]]]:
    for prompt in PROMPTS:
        for completion in COMPLETIONS:
            for answers in ANSWERS:
                yield prompt, completion, answers
