"""The contract of an alignment, as tests: what it declares, and which rows it refuses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, get_args

import pytest

from llmft import api
from llmft.api.kinds import Kind
from llmft.modeling.tiny_models import tiny_tokenizer
from llmft.registry import return_checks
from llmft.testing.config_checks import SettingsContract
from llmft.testing.training_checks import TrainingStage

ROWS: dict[str, api.Row] = {
    "text": api.TextRow("Oslo is in Norway.", origin="made-up:1"),
    "completion": api.CompletionRow("Where is Oslo?", "In Norway.", ("Norway",), "made-up:1"),
    "chat": api.ChatRow(
        (
            {"role": "user", "content": "Where is Oslo?"},
            {"role": "assistant", "content": "In Norway."},
        ),
        origin="made-up:1",
    ),
    "preference": api.PreferenceRow("Where is Oslo?", "Norway.", "Peru.", 1.0, "made-up:1"),
    "unpaired": api.UnpairedRow("Where is Oslo?", "Norway.", True, origin="made-up:1"),
    "classification": api.ClassificationRow("Oslo is in Norway.", 1, origin="made-up:1"),
    "prompt": api.PromptRow("Where is Oslo?", ("Norway",), "made-up:1"),
}
"""One row of each kind."""
OTHERS: dict[str, api.Row] = {
    "classification": api.ClassificationRow("Lima is in Norway.", 0, origin="made-up:2"),
}
"""Another row of a kind, where two of the same are nothing to learn from."""


class AlignmentContract(SettingsContract):
    """Checks what an alignment declares, a step of it, and that it takes no rows of other kinds."""

    kind: ClassVar[Kind] = "alignment"

    def test_it_declares_its_rows_and_what_it_produces(self) -> None:
        rows, produces = self.method_class.rows, self.method_class.produces
        assert len(set(rows)) == len(rows), f"'rows' names a kind twice: {rows}"
        assert produces.isidentifier(), f"'produces' is no plain word: {produces!r}"

    def test_its_references_name_what_the_stage_must_produce(self) -> None:
        for name, mark in references_in(self.method_class.Config):
            assert mark.produces.isidentifier(), f"'{name}' refers to {mark.produces!r}"

    def test_it_refuses_rows_of_another_kind(self, settings: Mapping[str, Any]) -> None:
        for kind in get_args(api.RowKind):
            if kind in self.method_class.rows:
                continue
            context = _Refusing([ROWS[kind]] * 2)
            with pytest.raises(Exception):  # noqa: B017, PT011 - any refusal will do
                self.make(settings).train(context)
            assert not context.trained, f"it trained on rows of the kind '{kind}'"

    def test_a_step_of_it_keeps_to_the_contract(
        self, settings: Mapping[str, Any], tmp_path: Path
    ) -> None:
        kinds = self.make(settings).row_kinds()
        assert set(kinds) <= set(self.method_class.rows), f"'rows' has not all of {kinds}"
        assert kinds or not self.method_class.rows, "'row_kinds' names none under these settings"
        for kind in kinds:
            work = self.make(settings)
            stage = TrainingStage(work, [ROWS[kind], OTHERS.get(kind, ROWS[kind])] * 2, tmp_path)
            try:
                return_checks.result_of(work, work.train(stage), stage.folder)
                return_checks.row_values_of(work, work.evaluate(stage))
            except api.PluginError as error:
                pytest.fail(error.faults[0].what)
            assert stage.fitted, f"it trains on no row of the kind '{kind}'"


def references_in(config: type[api.Settings]) -> Iterator[tuple[str, api.StageRef]]:
    """Yield every mark of a reference to a stage, with its setting, wherever the mark stands."""
    for name, field in config.model_fields.items():
        waiting: list[Any] = [*field.metadata, field.annotation]
        while waiting:
            part = waiting.pop()
            if isinstance(part, api.StageRef):
                yield name, part
            waiting += [*getattr(part, "__metadata__", ()), *get_args(part)]


class _Refusing:
    """A stage with rows of the wrong kind, in which nothing must be trained."""

    name = "stage"
    seed = 0
    folder = Path("no-such-folder")

    def __init__(self, rows: Sequence[api.Row]) -> None:
        self.train = api.TrainSettings.model_validate({})
        self.trained = False
        self.data, self.models, self.sampler = _Data(rows), _NoModel(), _Sampler()

    def fit(self, items: Sequence[Any], objective: api.Objective) -> api.StageResult:
        self.trained = True
        raise AssertionError("the alignment trains on rows that it does not declare")


class _Data:
    def __init__(self, rows: Sequence[api.Row]) -> None:
        self._rows, self._tokenizer = rows, tiny_tokenizer(chat=True)

    def rows(self) -> Sequence[api.Row]:
        return self._rows

    def encode(self, rows: Sequence[api.Row]) -> list[api.Encoded]:
        encoded = []
        for row in rows:
            # As the engine's: a preference or a bare prompt has no single text to learn.
            if not isinstance(row, api.TextRow | api.CompletionRow | api.ChatRow):
                raise api.DataError("E300", f"{row.origin}: no text to learn in this kind of row")
            ids = tuple(self._tokenizer(str(row)).input_ids)
            encoded.append(api.Encoded(ids, ids, row.origin))
        return encoded


class _NoModel:
    @property
    def model(self) -> Any:
        raise AssertionError("there is no model to train on these rows")

    @property
    def tokenizer(self) -> Any:
        return tiny_tokenizer(chat=True)


class _Sampler:
    def generate(
        self, prompts: Sequence[api.Prompt], max_new_tokens: int, *, model: Any = None
    ) -> list[str]:
        return ["Norway." for _ in prompts]
