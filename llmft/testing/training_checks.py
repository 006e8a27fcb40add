"""A stage on a tiny model, in which a step of an alignment is held against its contract."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from llmft import api
from llmft.modeling.tiny_models import tiny_llama, tiny_tokenizer
from llmft.training.checked import CheckedObjective, CheckedOnlineObjective


class LongerIsBetter(api.RewardFunction[api.RewardConfig]):
    """Scores an answer by its length."""

    method = "longer"
    Config = api.RewardConfig

    def score(self, prompt: api.Prompt, completion: str, answers: Sequence[str]) -> float:
        """Return how many letters the answer has."""
        return float(len(completion))


class TrainingStage:
    """A stage whose `fit` asks the objective for a step, without an optimiser.

    fitted: whether the alignment has trained. Answers are made up, a different one each time.
    """

    name = "stage"
    seed = 0
    planned = False

    def __init__(self, work: api.Alignment[Any], rows: Sequence[api.Row], folder: Path) -> None:
        self.train = api.TrainSettings.model_validate({})
        self.work, self.folder, self.fitted = work, folder, False
        self.data, self.models, self.sampler = _Data(rows), _Models(work), _Sampler()
        self.log = _Log()

    def fit(self, items: Sequence[Any], objective: api.Objective) -> api.StageResult:
        assert items, "it trains on no items"
        checked = CheckedObjective(objective, self.work)
        self._hold(checked, items)
        return self._result()

    def fit_online(self, prompts: Sequence[Any], objective: api.OnlineObjective) -> api.StageResult:
        assert not self.work.supports_token_budget, (
            "it samples its rows: declare 'supports_token_budget = False'"
        )
        assert not self.work.supports_shard_base, (
            "it samples its rows: declare 'supports_shard_base = False'"
        )
        assert not self.work.supports_length_groups, (
            "it samples its rows: declare 'supports_length_groups = False'"
        )
        checked = CheckedOnlineObjective(objective, self.work)
        items = checked.sample_rollouts(prompts, range(len(prompts)), 0, lambda: False)
        for update in checked.updates(len(items), 0):
            self._hold(checked, [items[number] for number in update])
        checked.step_metrics()
        checked.restore(checked.state())
        return self._result()

    def stage_folder(self, name: str) -> Path:
        pytest.skip(f"it reads the stage '{name}': there is none here")

    def reward_function(self, config: api.RewardConfig) -> api.RewardFunction[Any]:
        return LongerIsBetter(config)

    def _hold(self, objective: CheckedObjective, items: Sequence[Any]) -> None:
        """Assert that a batch's loss is a sum: an item that is there twice counts twice.

        And that it is the same in whichever passes the items are, where the method says so.
        """
        self.fitted = True
        once, twice = [items[0]], [items[0], items[0]]
        loss, _ = objective.loss(self.models.model, list(items))
        loss.backward()  # type: ignore[no-untyped-call]
        single = float(objective.loss(self.models.model, once)[0].detach())
        double = float(objective.loss(self.models.model, twice)[0].detach())
        ratio = objective.weight(twice) / objective.weight(once)
        assert math.isclose(ratio, 2, rel_tol=1e-6), f"an item twice weighs {ratio:g} times as much"
        alike = math.isclose(double, 2 * single, rel_tol=1e-3, abs_tol=1e-5)
        assert alike, f"the loss is no sum: {single:g} for an item, {double:g} for it twice"
        if self.work.supports_token_budget:
            apart = sum(
                float(objective.loss(self.models.model, [one])[0].detach()) for one in items
            )
            assert math.isclose(float(loss.detach()), apart, rel_tol=1e-3, abs_tol=1e-5), (
                f"the loss of items together is {float(loss.detach()):g}, and {apart:g} one by one:"
                " declare 'supports_token_budget = False'"
            )

    def _result(self) -> api.StageResult:
        return api.StageResult(self.work.produces, steps=1, metrics={"train_loss": 1.0})


class _Data:
    """Made-up rows, each text a row of its own."""

    def __init__(self, rows: Sequence[api.Row]) -> None:
        self._rows, self._tokenizer = rows, tiny_tokenizer(chat=True)

    max_length = None

    def rows(self) -> Sequence[api.Row]:
        return self._rows

    def held_out(self) -> Sequence[api.Row]:
        return self._rows

    def encode(self, rows: Sequence[api.Row]) -> list[api.Encoded]:
        return [self._encoded(*_texts(row), row.origin) for row in rows]

    def encode_pairs(self, rows: Sequence[api.Row]) -> list[api.EncodedPair]:
        pairs = []
        for row in rows:
            assert isinstance(row, api.PreferenceRow), f"{row.origin}: no preference"
            prompt = str(row.prompt)
            chosen, rejected = (
                self._encoded(prompt, text, row.origin) for text in (row.chosen, row.rejected)
            )
            shared = len(self._ids(prompt))
            pairs.append(api.EncodedPair(chosen, rejected, shared, row.margin, row.origin))
        return pairs

    def encode_unpaired(self, rows: Sequence[api.Row]) -> list[api.EncodedUnpaired]:
        found = []
        for row in rows:
            if isinstance(row, api.PreferenceRow):
                answers = [(row.chosen, True), (row.rejected, False)]
            else:
                assert isinstance(row, api.UnpairedRow), f"{row.origin}: it has no label"
                answers = [(row.completion, row.label)]
            for text, label in answers:
                one = self._encoded(str(row.prompt), text, row.origin)
                made = api.EncodedUnpaired(one.input_ids, one.labels, one.origin, label)
                found.append(made)
        return found

    def encode_classification(self, rows: Sequence[api.Row]) -> list[api.EncodedClassification]:
        found = []
        for row in rows:
            assert isinstance(row, api.ClassificationRow), f"{row.origin}: it has no class"
            ids = self._ids(str(row.prompt))
            none = (-100,) * len(ids)
            found.append(api.EncodedClassification(ids, none, row.origin, row.label))
        return found

    def encode_prompts(
        self, rows: Sequence[api.Row], max_new_tokens: int
    ) -> list[api.EncodedPrompt]:
        found = []
        for row in rows:
            assert isinstance(row, api.PromptRow | api.CompletionRow), f"{row.origin}: no prompt"
            ids = self._ids(str(row.prompt))
            none = (-100,) * len(ids)
            found.append(api.EncodedPrompt(ids, none, row.origin, row.prompt, row.answers))
        return found

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(text, add_special_tokens=False).input_ids)

    def _encoded(self, prompt: str, text: str, origin: str) -> api.Encoded:
        before, learnt = self._ids(prompt), self._ids(text)
        return api.Encoded(before + learnt, (-100,) * len(before) + learnt, origin)


class _Models:
    """A tiny model, and another one as its reference."""

    shares_prompts = False

    def __init__(self, work: api.Alignment[Any]) -> None:
        self.work, self.tokenizer = work, tiny_tokenizer(chat=True)

    @cached_property
    def model(self) -> Any:
        model = tiny_llama()
        self.work.extend(model)
        return model

    def reference(self) -> Any:
        return contextlib.nullcontext()

    @property
    def starts_as_reference(self) -> bool:
        return False

    def precision(self) -> Any:
        return contextlib.nullcontext()

    def reference_model(self) -> Any:
        return tiny_llama().requires_grad_(False)

    def other_model(self, asked: api.OtherModel) -> Any:
        return tiny_llama(1).requires_grad_(False)

    def load_stage(self, name: str) -> Any:
        pytest.skip(f"it reads the stage '{name}': there is none here")


class _Sampler:
    """Made-up answers."""

    def __init__(self) -> None:
        self._tokenizer = tiny_tokenizer()

    def generate(
        self, prompts: Sequence[api.Prompt], max_new_tokens: int, *, model: Any = None
    ) -> list[str]:
        return ["Norway." for _ in prompts]

    def sample(
        self, prompts: Sequence[api.Prompt], params: api.SamplingParams, *, seed: int = 0
    ) -> list[list[str]]:
        return [["Norway."] * params.num_return_sequences for _ in prompts]

    def decode(
        self, prompts: Sequence[Sequence[int]], params: api.SamplingParams, **how: Any
    ) -> list[api.Answer]:
        answers = []
        for number in range(len(prompts)):
            text = "answer"[: 1 + number % 6]
            ids = list(self._tokenizer(text, add_special_tokens=False).input_ids)
            ids = ids[: params.max_new_tokens]
            answers.append(api.Answer(ids, [-1.0] * len(ids), True))
        return answers


class _Log:
    """Nobody is told."""

    def note(self, text: str) -> None:
        """Keep quiet."""

    def progress(self, phase: str, done: int, total: int) -> None:
        """Keep quiet."""

    def add_samples(self, samples: Sequence[Mapping[str, Any]]) -> None:
        """Keep quiet."""


def _texts(row: api.Row) -> tuple[str, str]:
    """Return what a row asks, and what of it is learnt."""
    if isinstance(row, api.TextRow):
        return "", row.text
    if isinstance(row, api.CompletionRow):
        return str(row.prompt), f" {row.completion}"
    if isinstance(row, api.ChatRow):
        *before, last = (str(turn["content"]) for turn in row.messages)
        return " ".join(before), f" {last}"
    raise api.DataError("E300", f"{row.origin}: no text to learn in this kind of row")
