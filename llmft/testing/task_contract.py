"""The contract of a task, as tests: what it declares, which rows it takes, and what it writes."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, get_args

import pytest

from llmft import api
from llmft.api.kinds import Kind
from llmft.modeling.tiny_models import tiny_tokenizer
from llmft.testing.alignment_contract import ROWS, references_in
from llmft.testing.config_checks import SettingsContract

FILE = "rows.jsonl"
WORDS = ("Norway.", "In Norway.", "Peru.", "It is in the north of Europe.", "")


class TaskContract(SettingsContract):
    """Checks what a task declares, that it takes no other rows, and that it writes what it says.

    Its stage has no real model: answers are made up, by the seed, and a reward is an answer's
    length. configs: blocks with which the task can run in such a stage, on what `earlier` makes.
    """

    kind: ClassVar[Kind] = "task"

    def earlier(self, folder: Path) -> Mapping[str, Path]:
        """Make what finished stages would have left, and return their folders by stage name."""
        return {}

    def test_it_declares_its_rows_and_what_it_produces(self) -> None:
        rows, produces = self.method_class.rows, self.method_class.produces
        assert len(set(rows)) == len(rows), f"'rows' names a kind twice: {rows}"
        assert produces.isidentifier(), f"'produces' is no plain word: {produces!r}"

    def test_its_references_name_what_the_stage_must_produce(self) -> None:
        for name, mark in references_in(self.method_class.Config):
            assert mark.produces.isidentifier(), f"'{name}' refers to {mark.produces!r}"

    def test_it_writes_rows_and_says_what_they_are(
        self, settings: Mapping[str, Any], tmp_path: Path
    ) -> None:
        for kind in self.method_class.rows or (None,):
            stage, result = self._run(settings, tmp_path / str(kind), kind)
            assert isinstance(result, api.StageResult), f"run returns {result!r}, no StageResult"
            said = (result.produces, self.method_class.produces)
            assert said[0] == said[1], f"the result says '{said[0]}', and the class '{said[1]}'"
            odd = {n: v for n, v in result.metrics.items() if not math.isfinite(v)}
            assert not odd, f"metrics are not finite: {odd}"
            assert (stage.folder / FILE).is_file(), f"it leaves no '{FILE}' in the stage's folder"
            lines = (stage.folder / FILE).read_text("utf-8").splitlines()
            assert lines, f"'{FILE}' is empty"
            for line in lines:
                assert isinstance(json.loads(line), dict), f"a line is no JSON object: {line}"

    def test_it_does_the_same_twice(self, settings: Mapping[str, Any], tmp_path: Path) -> None:
        kind = next(iter(self.method_class.rows), None)
        made = [self._run(settings, tmp_path / name, kind) for name in ("one", "two")]
        (one, first), (two, second) = made
        assert (one.folder / FILE).read_bytes() == (two.folder / FILE).read_bytes(), (
            "the same stage, run twice, writes other rows"
        )
        assert first == second, "the same stage, run twice, gives another result"

    def test_it_leaves_earlier_stages_as_they_are(
        self, settings: Mapping[str, Any], tmp_path: Path
    ) -> None:
        kind = next(iter(self.method_class.rows), None)
        stage = self._stage(tmp_path, kind)
        before = _contents(tmp_path / "earlier")
        self.make(settings).run(stage)
        assert _contents(tmp_path / "earlier") == before, "it changed what earlier stages made"

    def test_it_refuses_rows_of_another_kind(
        self, settings: Mapping[str, Any], tmp_path: Path
    ) -> None:
        for kind in get_args(api.RowKind):
            if not self.method_class.rows or kind in self.method_class.rows:
                continue
            stage = self._stage(tmp_path / kind, kind)
            with pytest.raises(Exception):  # noqa: B017, PT011 - any refusal will do
                self.make(settings).run(stage)
            assert not (stage.folder / FILE).exists(), f"it took rows of the kind '{kind}'"

    def _stage(self, folder: Path, kind: str | None) -> _Stage:
        (folder / "earlier").mkdir(parents=True)
        (folder / "stage").mkdir()
        rows = [ROWS[kind]] * 3 if kind else None
        return _Stage(folder / "stage", rows, self.earlier(folder / "earlier"))

    def _run(
        self, settings: Mapping[str, Any], folder: Path, kind: str | None
    ) -> tuple[_Stage, api.StageResult]:
        stage = self._stage(folder, kind)
        return stage, self.make(settings).run(stage)


class _Longer(api.RewardFunction[api.RewardConfig]):
    """Scores an answer by its length."""

    method = "longer"
    Config = api.RewardConfig

    def score(self, prompt: api.Prompt, completion: str, answers: Sequence[str]) -> float:
        return float(len(completion))


class _Stage:
    """A stage that a task may run in, whose model answers with made-up words."""

    name = "stage"
    seed = 0
    fingerprint = "what it is made from"
    planned = False

    def __init__(
        self, folder: Path, rows: Sequence[api.Row] | None, earlier: Mapping[str, Path]
    ) -> None:
        self.folder, self._earlier = folder, earlier
        self.train = api.TrainSettings.model_validate({})
        self.data, self.models = _Data(rows), _Models()
        self.sampler, self.log = _Sampler(self.seed), _Log()

    def stage_folder(self, name: str) -> Path:
        assert name in self._earlier, f"it reads the stage '{name}', which 'earlier' does not make"
        return self._earlier[name]

    def row_scores(self, *, base: bool = False) -> api.RowScores:
        rows = self.data.rows()
        assert not any(isinstance(row, api.ClassificationRow) for row in rows), "it has no answer"
        values = [float(base == bool(number % 2)) for number in range(len(rows))]
        score = {"value": sum(values) / len(values), "low": 0.0, "high": 1.0, "n": len(values)}
        answered = [
            {"prompt": f"{number}", "answer": WORDS[0], "right": [], "score": value}
            for number, value in enumerate(values)
        ]
        return api.RowScores({"score": score}, {"score": values}, answered)

    def reward_function(self, config: api.RewardConfig) -> api.RewardFunction[Any]:
        return _Longer(config)


class _Data:
    def __init__(self, rows: Sequence[api.Row] | None) -> None:
        self._rows = rows

    def rows(self) -> Sequence[api.Row]:
        assert self._rows is not None, "it reads rows, and declares none in 'rows'"
        return self._rows


class _Models:
    @property
    def model(self) -> Any:
        raise AssertionError("there is no model here; ask the sampler")

    @property
    def tokenizer(self) -> Any:
        return tiny_tokenizer(chat=True)


class _Sampler:
    def __init__(self, seed: int) -> None:
        self.seed = seed

    def generate(
        self, prompts: Sequence[api.Prompt], max_new_tokens: int, *, model: Any = None
    ) -> list[str]:
        return [WORDS[0] for _ in prompts]

    def sample(
        self, prompts: Sequence[api.Prompt], params: api.SamplingParams, *, seed: int = 0
    ) -> list[list[str]]:
        rng = random.Random(f"{self.seed} {seed}")
        return [rng.choices(WORDS, k=params.num_return_sequences) for _ in prompts]


class _Log:
    def progress(self, phase: str, done: int, total: int) -> None:
        """Nobody is told."""

    def note(self, text: str) -> None:
        """Nobody is told."""


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
