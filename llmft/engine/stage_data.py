"""A stage's rows, read when first asked for, and how they become token ids."""

from __future__ import annotations

import copy
import functools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Protocol, TypeVar, cast

from llmft.api import (
    DataError,
    Encoded,
    EncodedClassification,
    EncodedPair,
    EncodedPrompt,
    EncodedUnpaired,
    Row,
)
from llmft.api.shown_text import on_one_line
from llmft.api.train_settings import TrainSettings
from llmft.data.classification_encoding import encode_classification
from llmft.data.duplicates import Duplicates, duplicates
from llmft.data.encoding import Encoder
from llmft.data.encoding_report import EncodingReport
from llmft.data.pair_encoding import encode_pairs
from llmft.data.prompt_encoding import encode_prompts
from llmft.data.shown_rows import token_rows
from llmft.data.stage_rows import leave_out_by_tokens, row_digests, stage_rows
from llmft.data.streaming import Stream, StreamedItems
from llmft.data.unpaired_encoding import encode_unpaired
from llmft.data.usable_rows import Rows
from llmft.engine.stage_log import StageLog
from llmft.modeling.base_model import BaseModel
from llmft.recipes.job import BoundStage
from llmft.recipes.locating import about

UNREAD = "columns of the data that are not read"
_SHOWN = 8
Items = TypeVar(
    "Items",
    Encoded,
    EncodedClassification,
    EncodedPair,
    EncodedPrompt,
    EncodedUnpaired,
    covariant=True,
)


class Encode(Protocol[Items]):
    """Makes items of rows, and says which were cut or dropped.

    refuse: whether it raises DataError where more are lost than the settings allow.
    """

    def __call__(
        self, encoder: Encoder, rows: Sequence[Row], settings: TrainSettings, /, *, refuse: bool
    ) -> tuple[Sequence[Items], EncodingReport]: ...


@dataclass(frozen=True)
class TrainedOn:
    """The training rows as a method asked for them."""

    items: Sequence[Any]
    report: EncodingReport
    encode: Encode[Any]


class StageData:
    """The `data` of a StageContext. dataset: knows the folders of the stages it reads.

    streams: whether streamed rows are read to be trained on, and not to look at the first ones.
    """

    streams = True

    def __init__(
        self, bound: BoundStage, dataset: Any, base: BaseModel, seed: int, log: StageLog
    ) -> None:
        self.bound, self.dataset, self.base = bound, dataset, base
        self.train, self.seed, self.log = bound.spec.train, seed, log
        self._told_day = False
        self.trained_on: TrainedOn | None = None
        self.held_out_origins: Sequence[str] = ()  # of the items that the method made of them
        self.duplicates = Duplicates(0, 0, 0, 0)  # of the rows, once they are read

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
            train, held_out = stage_rows(
                self.bound.spec, self.dataset, self.seed, lambda: self.encoder
            )
        for rows in (train, held_out):
            if rows is not None and (note := rows.note()):
                self.log.note(note)
        if train.pin:
            self.log.note(
                f"streamed: what is said about rows covers the first {len(train.rows):,}, all"
                " that were read"
            )
        if note := mixture_note(train):
            self.log.note(note)
        self.duplicates = duplicates(train.rows, held_out.rows if held_out else (), train.of_source)
        if note := self.duplicates.note():
            self.log.note(note)
        if note := unread_note(train, held_out):
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
        """SHA-256 of the rows that are used, and of what a task reads beside them, for the lock."""
        rows = {} if self.dataset is None else row_digests(*self.split)
        return rows | self.bound.reads()

    def encode(self, rows: Sequence[Row]) -> Sequence[Encoded]:
        """Return rows as token ids, saying how many were cut or dropped.

        With packing_strategy: wrapped, rows of training are cut to fill chunks, in their order.
        """
        wrap = self._are_wrapped(rows)

        def encode(
            encoder: Encoder, some: Sequence[Row], train: TrainSettings, *, refuse: bool
        ) -> tuple[Sequence[Encoded], EncodingReport]:
            return encoder.encode(some, train, refuse=refuse, wrap=wrap)

        items = self._made(rows, encode)
        if not (self.streams and self._is_of_training(rows) and self.dataset.config.streaming):
            return items
        return cast("Sequence[Encoded]", self._streamed(encode))

    def _streamed(self, encode: Encode[Encoded]) -> StreamedItems:
        """Return what all rows are trained on as, read during training by a thread.

        It has a tokenizer of its own: one of Rust refuses two threads at a time.
        """

        @functools.cache
        def encoder() -> Encoder:
            own = copy.deepcopy(self.base.tokenizer)
            return Encoder(own, self.max_length, self.base.chat_format)

        def prepare(rows: Rows) -> None:
            leave_out_by_tokens(rows, self.dataset, encoder)

        def make(rows: Sequence[Row]) -> Sequence[Encoded]:
            items, _ = encode(encoder(), rows, self.train, refuse=True)
            self._refuse_unknown_tokens(items)
            return items

        shuffled = self.train.train_sampling_strategy == "random"
        seed = self.bound.spec.own_seed(self.seed)
        return StreamedItems(Stream(self.dataset, prepare), seed, make, shuffled=shuffled)

    def encode_pairs(self, rows: Sequence[Row]) -> list[EncodedPair]:
        """Return preference rows as token ids, saying how many were cut or dropped."""
        return list(self._made(rows, encode_pairs))

    def encode_unpaired(self, rows: Sequence[Row]) -> list[EncodedUnpaired]:
        """Return labelled answers as token ids, saying how many were cut or dropped."""
        return list(self._made(rows, encode_unpaired))

    def encode_classification(self, rows: Sequence[Row]) -> list[EncodedClassification]:
        """Return rows to classify as token ids, saying how many were cut or dropped."""
        return list(self._made(rows, encode_classification))

    def encode_prompts(self, rows: Sequence[Row], max_new_tokens: int) -> list[EncodedPrompt]:
        """Return prompts as token ids that leave room for an answer, saying how many were cut."""
        return list(self._made(rows, partial(encode_prompts, max_new_tokens=max_new_tokens)))

    def _made(self, rows: Sequence[Row], encode: Encode[Items]) -> Sequence[Items]:
        self.log.progress("tokenise", 0, len(rows))
        items, report = self._encoded(rows, encode)
        if self._is_of_training(rows):
            self.trained_on = TrainedOn(items, report, encode)
        elif self._is_held_out(rows):
            self.held_out_origins = [item.origin for item in items]
        self._tell(report)
        self._refuse_unknown_tokens(row for item in items for row in token_rows(item))
        return items

    def _encoded(
        self, rows: Sequence[Row], encode: Encode[Items]
    ) -> tuple[Sequence[Items], EncodingReport]:
        return encode(self.encoder, rows, self.train, refuse=True)

    def _is_of_training(self, rows: Sequence[Row]) -> bool:
        return "split" in self.__dict__ and rows is self.split[0].rows

    def _is_held_out(self, rows: Sequence[Row]) -> bool:
        return "split" in self.__dict__ and rows is self.held_out()

    def _are_wrapped(self, rows: Sequence[Row]) -> bool:
        """Return whether rows fill chunks: those that are scored keep as much context as fits."""
        return self.train.packing_strategy == "wrapped" and not self._is_held_out(rows)

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
        words = self.base.vocabulary
        for row in rows:
            if words and max(row.input_ids, default=0) >= words:
                raise DataError(
                    "E114",
                    f"{row.origin}: the tokenizer gives the id {max(row.input_ids)}, and the model"
                    f" has {words} tokens",
                    fix="set model.tokenizer to the tokenizer that belongs to the model",
                )


def mixture_note(train: Rows) -> str:
    """Return how many rows each source gives, and of how many; '' where there is one source."""
    if not train.sources:
        return ""
    used = Counter(map(train.of_source.get, (row.origin for row in train.rows)))
    said = []
    for name, part in train.sources.items():
        count, rows = used[name], len(part.rows)
        times = f" {count / rows:.3g} times" if count > rows else ""
        of = f" of its {rows:,}" if count < rows else f", its {rows:,}{times}" if times else ""
        said.append(f"{name} {count:,} ({count / len(train.rows):.1%}){of}")
    return f"{len(train.rows):,} rows are mixed: {'; '.join(said)}"


def unread_note(train: Rows, held_out: Rows | None) -> str:
    """Return which columns, and which keys of messages, nobody reads; '' where all are read.

    Keys inside a column that is read, such as an answer's other spellings, are no surprise.
    """
    unread = sorted(train.unread | (held_out.unread if held_out else {}))
    named = [f"'{on_one_line(name)}'" for name in unread if "." not in name.replace("[].", "")]
    more = f" and {len(named) - _SHOWN} more" if named[_SHOWN:] else ""
    return f"{UNREAD}: {', '.join(named[:_SHOWN])}{more}" if named else ""
