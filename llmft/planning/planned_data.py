"""A planned stage's rows: all are counted, and those that take the most memory are kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llmft.api import (
    Alignment,
    Encoded,
    EncodedClassification,
    EncodedPair,
    EncodedPrompt,
    EncodedUnpaired,
    PromptRow,
    Row,
)
from llmft.api.errors import LlmftError
from llmft.api.rows import IGNORED
from llmft.data.classification_encoding import encode_classification
from llmft.data.encoding_report import EncodingReport
from llmft.data.pair_encoding import encode_pairs
from llmft.data.prompt_encoding import encode_prompts
from llmft.data.unpaired_encoding import encode_unpaired
from llmft.engine.stage_data import StageData
from llmft.modeling.batching import is_padding_free
from llmft.planning.batch_choice import choose
from llmft.planning.plan_state import PlanState
from llmft.planning.planned_models import PlannedModels

ROWS_TOKENISED = 20_000
ASSUMED_TOKENS = 2048


class PlannedData(StageData):
    """The rows that take the most memory, after all were counted."""

    streams = False
    state: PlanState
    models: PlannedModels

    def rows(self) -> Sequence[Row]:
        """Return the training rows; none, with a remark, where they cannot be read from here."""
        try:
            return super().rows()
        except LlmftError as error:
            if error.exit_code != 4:  # only what the machine lacks may be assumed
                raise
            self.state.remark(f"the rows cannot be read from here: {error.faults[0].what}")
            return () if isinstance(self.bound.work, Alignment) else self._made_up()

    def held_out(self) -> Sequence[Row]:
        """Return the rows the stage is scored on; none where they cannot be read from here."""
        try:
            return super().held_out()
        except LlmftError as error:
            if error.exit_code != 4:
                raise
            self.state.remark("the evaluation is not counted, as its rows are not here")
            return ()

    def encode(self, rows: Sequence[Row]) -> Sequence[Encoded]:
        """Return the rows that take the most memory, having counted all."""
        if not rows:
            return self._assumed()
        wrap = self._are_wrapped(rows) and not self.state.judging
        return self._heaviest(rows, lambda some: self.encoder.encode(some, self.train, wrap=wrap))

    def encode_pairs(self, rows: Sequence[Row]) -> list[EncodedPair]:
        """Return the pairs that take the most memory, having counted all."""
        if not rows:
            return [EncodedPair(row, row, len(row.input_ids) // 2) for row in self._assumed(2)]
        return self._heaviest(rows, lambda some: encode_pairs(self.encoder, some, self.train))

    def encode_unpaired(self, rows: Sequence[Row]) -> list[EncodedUnpaired]:
        """Return the labelled answers that take the most memory, having counted all."""
        if not rows:
            return [EncodedUnpaired(row.input_ids, row.labels) for row in self._assumed()]
        return self._heaviest(rows, lambda some: encode_unpaired(self.encoder, some, self.train))

    def encode_classification(self, rows: Sequence[Row]) -> list[EncodedClassification]:
        """Return the rows to classify that take the most memory, having counted all."""
        if not rows:
            none = (IGNORED,)
            return [
                EncodedClassification(row.input_ids, none * len(row.input_ids))
                for row in self._assumed()
            ]
        return self._heaviest(
            rows, lambda some: encode_classification(self.encoder, some, self.train)
        )

    def encode_prompts(self, rows: Sequence[Row], max_new_tokens: int) -> list[EncodedPrompt]:
        """Return the prompts that take the most memory, having counted all."""
        if not rows:
            ids = self._assumed()[0].input_ids[max_new_tokens:] or (1,)
            prompt = EncodedPrompt(ids, (IGNORED,) * len(ids))
            return [prompt] * self.train.per_device_train_batch_size
        return self._heaviest(
            rows, lambda some: encode_prompts(self.encoder, some, self.train, max_new_tokens)
        )

    def _heaviest(
        self, rows: Sequence[Row], encode: Callable[[Any], tuple[Sequence[Any], EncodingReport]]
    ) -> list[Any]:
        held_out = self.__dict__["split"][1] if "split" in self.__dict__ else None
        judged = self.state.judging or (held_out is not None and rows is held_out.rows)
        every = -(-len(rows) // ROWS_TOKENISED)
        some = rows[::every]
        if every > 1:
            self.state.remark(
                f"{len(some):,} of {len(rows):,} rows were tokenised; numbers are scaled"
            )
        (items, report), share = encode(some), len(some) / len(rows)
        if note := report.note():
            self.state.remark(f"to score, {note}" if judged else note)
        if not items:
            return []
        budget = self.train.per_device_train_tokens
        padded = budget is not None and not is_padding_free(self.models.model)
        seed = self.bound.spec.own_seed(self.seed)
        counts, chosen = choose(
            items, self.train, seed, self.max_length, share, padded=padded,
            processes=self.state.processes,
        )  # fmt: skip
        if judged:
            return chosen.judged
        self.state.counts, self.state.chosen = counts, chosen
        return chosen.items

    def _made_up(self) -> Sequence[Row]:
        """Return a batch of prompts for a task whose rows cannot be read from here."""
        self.state.assumed = True
        tokens = min(self.max_length or ASSUMED_TOKENS, ASSUMED_TOKENS) // 2
        self.state.remark(f"memory is computed for prompts of {tokens:,} tokens")
        count = self.train.per_device_eval_batch_size
        return [PromptRow(f"{number}" + " a" * (tokens - 1)) for number in range(count)]

    def _assumed(self, rows_each: int = 1) -> list[Encoded]:
        """Return a pass of rows that nobody knows yet. rows_each: token rows in an item."""
        length = min(self.max_length or ASSUMED_TOKENS, ASSUMED_TOKENS)
        length = self.train.max_length or length
        self.state.remark(
            f"memory is computed for rows of {length:,} tokens, half of them trained on"
        )
        ids = (1,) * length
        row = Encoded(ids, (IGNORED,) * (length // 2) + ids[length // 2 :])
        if (budget := self.train.per_device_train_tokens) is None:
            return [row] * self.train.per_device_train_batch_size
        room = max(1, budget // (length * rows_each))
        return [row] * min(room, self.train.rows_per_step())
