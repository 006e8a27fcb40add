"""A stage's rows, read when first asked for, and how they become token ids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

from llmft.api import DataError, Encoded, EncodedPair, EncodedPrompt, Row
from llmft.data.duplicates import repeats
from llmft.data.encoding import Encoder, EncodingReport
from llmft.data.pair_encoding import encode_pairs
from llmft.data.prompt_encoding import encode_prompts
from llmft.data.stage_rows import Rows, leave_out, row_digests, stage_rows
from llmft.engine.stage_log import StageLog
from llmft.modeling.base_model import BaseModel
from llmft.recipes.job import BoundStage
from llmft.recipes.locating import about


class StageData:
    """The `data` of a StageContext. dataset: knows the folders of the stages it reads."""

    def __init__(
        self, bound: BoundStage, dataset: Any, base: BaseModel, seed: int, log: StageLog
    ) -> None:
        self.bound, self.dataset, self.base = bound, dataset, base
        self.train, self.seed, self.log = bound.spec.train, seed, log
        self._told_day = False

    @cached_property
    def max_length(self) -> int | None:
        """Tokens in a row at most: the recipe's, or what the model's positions leave."""
        positions = self.base.positions
        adapter = self.bound.model_adapter
        taken = adapter.virtual_tokens() if adapter else 0
        left = positions - taken if positions else None
        return self.train.max_length or left

    @cached_property
    def encoder(self) -> Encoder:
        """What turns rows into token ids."""
        return Encoder(self.base.tokenizer, self.max_length, self.base.chat_format)

    @cached_property
    def split(self) -> tuple[Rows, Rows | None]:
        """The training rows, and those that the stage is scored on."""
        self.log.progress("read the rows", 0, 1)
        with about("data.path"):
            train, held_out = stage_rows(self.bound.spec, self.dataset, self.seed)
        for rows in (train, held_out):
            if rows is None:
                continue
            if self.dataset.config.on_bad_row == "skip":
                with about("data.path"):
                    leave_out(rows, self.encoder.refusals(rows.rows), self.dataset)
            if note := rows.note():
                self.log.note(note)
        if note := repeats(train.rows, held_out.rows if held_out else ()):
            self.log.note(note)
        return train, held_out

    def rows(self) -> Sequence[Row]:
        """Return the training rows."""
        return self.split[0].rows

    def held_out(self) -> Sequence[Row]:
        """Return the rows the stage is scored on; none where the recipe does not evaluate."""
        held_out = self.split[1]
        return held_out.rows if held_out else ()

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of the rows that are used, for the lock."""
        return {} if self.dataset is None else row_digests(*self.split)

    def encode(self, rows: Sequence[Row]) -> list[Encoded]:
        """Return rows as token ids, saying how many were cut or dropped."""
        self.log.progress("tokenise", 0, len(rows))
        encoded, report = self.encoder.encode(rows, self.train)
        self._tell(report)
        self._refuse_unknown_tokens(encoded)
        return encoded

    def encode_pairs(self, rows: Sequence[Row]) -> list[EncodedPair]:
        """Return preference rows as token ids, saying how many were cut or dropped."""
        self.log.progress("tokenise", 0, len(rows))
        pairs, report = encode_pairs(self.encoder, rows, self.train)
        self._tell(report)
        self._refuse_unknown_tokens(row for pair in pairs for row in (pair.chosen, pair.rejected))
        return pairs

    def encode_prompts(self, rows: Sequence[Row], max_new_tokens: int) -> list[EncodedPrompt]:
        """Return prompts as token ids that leave room for an answer, saying how many were cut."""
        self.log.progress("tokenise", 0, len(rows))
        prompts, report = encode_prompts(self.encoder, rows, self.train, max_new_tokens)
        self._tell(report)
        self._refuse_unknown_tokens(prompts)
        return prompts

    def _tell(self, report: EncodingReport) -> None:
        """Tell what a person should know of rows that became token rows."""
        if note := report.note():
            self.log.note(note)
        if self.encoder.reads_clock and not self._told_day:
            self._told_day = True
            day = self.base.source.chat_template_date
            self.log.note(
                f"the chat template writes the day, and is told {day} (model.chat_template_date)"
            )

    def _refuse_unknown_tokens(self, rows: Iterable[Encoded]) -> None:
        """Raise DataError where a row has a token that the model has no embedding for."""
        words = getattr(self.base.config.get_text_config(), "vocab_size", None)
        for row in rows:
            if words and max(row.input_ids, default=0) >= words:
                raise DataError(
                    "E114",
                    f"{row.origin}: the tokenizer gives the id {max(row.input_ids)}, and the model"
                    f" has {words} tokens",
                    fix="set model.tokenizer to the tokenizer that belongs to the model",
                )
