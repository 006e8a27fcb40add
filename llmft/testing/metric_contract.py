"""The contract of a metric, as tests: finite, repeatable values in its range, for any answer."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import pytest

from llmft import api
from llmft.api.errors import PluginError
from llmft.api.kinds import Kind
from llmft.registry.return_checks import score_names, values_of_answer, values_of_corpus
from llmft.testing.config_checks import SettingsContract
from llmft.testing.outside import reaching_outside
from llmft.testing.reward_contract import COMPLETIONS, PROMPTS

REFERENCES: tuple[tuple[str, ...], ...] = (("Norway",), ("Norway", "Kingdom of Norway"), ("",))
NONSENSE = "zyzzyva quokka"


class MetricContract(SettingsContract):
    """Checks that a metric gives every answer a value in its range, each time the same.

    The answers are ordinary, empty, very long and of odd characters. Where it declares that it
    needs no right answers, there are none. A metric that compares with right answers does not
    prefer nonsense.
    """

    kind: ClassVar[Kind] = "metric"

    def test_its_values_have_names(self, settings: Mapping[str, Any]) -> None:
        metric = self.make(settings)
        try:
            names = score_names(metric)
        except PluginError as error:
            pytest.fail(error.faults[0].what)
        assert score_names(metric) == names, "its values have other names when asked again"

    def test_each_answer_gets_values_within_its_range(self, settings: Mapping[str, Any]) -> None:
        for answer in self._answers():
            self._values(self.make(settings), [answer])

    def test_all_answers_together_get_values(self, settings: Mapping[str, Any]) -> None:
        self._values(self.make(settings), list(self._answers()))

    def test_it_gives_the_same_each_time_and_in_any_order(
        self, settings: Mapping[str, Any]
    ) -> None:
        answers = list(self._answers())
        metric, another = self.make(settings), self.make(settings)
        first = self._values(metric, answers)
        assert self._values(metric, answers) == first, "a second time gives others"
        for found, wanted in zip(self._values(another, answers[::-1])[::-1], first, strict=True):
            for name, value in wanted.items():
                near = math.isclose(found[name], value, rel_tol=1e-9, abs_tol=1e-12)
                assert near, f"'{name}' is another in another order: {found[name]!r}, {value!r}"

    def test_it_changes_nothing_that_it_is_given(self, settings: Mapping[str, Any]) -> None:
        turns: Any = [{"role": "user", "content": "Where is Oslo?"}]
        references: Any = ["Norway", "Kingdom of Norway"]
        row = api.CompletionRow(turns, "Norway", references, "rows.jsonl:1")
        answers = [api.ScoredAnswer(turns, "In Norway.", references, row)]
        before = copy.deepcopy(answers)
        self._values(self.make(settings), answers)
        assert answers == before, "what it was given was changed"

    def test_a_right_answer_is_no_worse_than_nonsense(self, settings: Mapping[str, Any]) -> None:
        metric = self.make(settings)
        if not metric.needs_references:
            return
        right = [_answer("Norway", ("Norway",)), _answer("Sweden", ("Sweden",))]
        wrong = [_answer(NONSENSE, one.references) for one in right]
        best, worst = self._values(metric, right), self._values(metric, wrong)
        for good, bad in zip(best, worst, strict=True):
            for name, value in good.items():
                better = value >= bad[name] if metric.greater_is_better else value <= bad[name]
                says = f"greater_is_better = {metric.greater_is_better}"
                assert better, f"'{name}' prefers nonsense ({bad[name]}, not {value}) with {says}"

    def test_it_reaches_for_no_network_and_no_process(self, settings: Mapping[str, Any]) -> None:
        with reaching_outside() as reached:
            self._values(self.make(settings), list(self._answers()))
        if reached:
            pytest.fail(f"the metric reaches outside: {sorted(set(reached))}")

    def _answers(self) -> Iterator[api.ScoredAnswer]:
        needs = self.method_class.needs_references
        for number, prompt in enumerate(PROMPTS):
            for completion in COMPLETIONS:
                for references in REFERENCES if needs else ((), *REFERENCES):
                    yield _answer(completion, references, prompt, number)

    def _values(
        self, metric: api.MetricFunction[Any], answers: list[api.ScoredAnswer]
    ) -> list[dict[str, float]]:
        """Return the values of each answer, or those of all of them, held against the contract."""
        try:
            if metric.is_of_corpus():
                return [values_of_corpus(metric, answers)]
            return [values_of_answer(metric, one) for one in answers]
        except PluginError as error:
            pytest.fail(error.faults[0].what)


def _answer(
    text: str, references: tuple[str, ...], prompt: api.Prompt = PROMPTS[0], number: int = 0
) -> api.ScoredAnswer:
    row = api.PromptRow(prompt, references, f"made-up.jsonl:{number}")
    return api.ScoredAnswer(prompt, text, references, row)
