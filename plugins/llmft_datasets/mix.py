"""Several data sets in one stage: one after the other, or drawn from in turn or by weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import cycle
from typing import Any, Literal, get_args

from pydantic import SerializeAsAny

from llmft.api import (
    DataError,
    Dataset,
    DatasetConfig,
    Field,
    Prompt,
    Refusal,
    Row,
    RowKind,
    hookimpl,
)

MOST = 100_000_000
"""Rows of a mixture; weights that would draw more of them are taken for a mistake."""
_BLOCK = 1000  # sources drawn at a time, as datasets.interleave_datasets draws them
_OF_SOURCES = (
    "split", "limit", "num_samples", "on_bad_row", "max_bad_rows", "drop", "replace", "name",
    "weight",
)  # fmt: skip

Stopping = Literal["first_exhausted", "all_exhausted", "all_exhausted_without_replacement"]


class Mix(Dataset["Mix.Config"]):
    """Several data sets, put together as `datasets.concatenate_datasets` or `interleave_datasets`.

    Each source is a data block of its own, with its method, columns, split and limit.
    """

    method = "mix"
    rows = get_args(RowKind)

    class Config(DatasetConfig):
        """The data sets, and how their rows are put together."""

        sources: list[SerializeAsAny[DatasetConfig]] = Field(
            min_length=1, max_length=256, description="the data sets, each with its own settings"
        )
        mixing: Literal["concatenate", "interleave"] = Field(
            "concatenate",
            description="concatenate: every row of every source; interleave: rows are drawn from"
            " the sources in turn, or at random by their weights",
        )
        stopping_strategy: Stopping = Field(
            "first_exhausted",
            description="when interleaving ends: where one source has no rows left; where every row"
            " was drawn, and small sources repeat theirs; or where every row was drawn once",
        )

    def check(self) -> Iterator[Refusal]:
        for key in _OF_SOURCES:
            usual = type(self.config).model_fields[key].get_default(call_default_factory=True)
            if getattr(self.config, key) != usual:
                yield (key,), f"{key} is a setting of each source", f"write {key} in the sources"
        interleaves = self.config.mixing == "interleave"
        if not interleaves and self.config.stopping_strategy != "first_exhausted":
            what = "stopping_strategy has an effect only where rows are interleaved"
            yield ("stopping_strategy",), what, "write mixing: interleave, or drop it"
        weighed = [source.weight is not None for source in self.config.sources]
        for number, has_weight in enumerate(weighed):
            if has_weight and not interleaves:
                what = "weight has an effect only where rows are interleaved"
                fix = "write mixing: interleave, or drop weight; to use a part: split: train[:20%]"
                yield ("sources", number, "weight"), what, fix
            elif any(weighed) and not has_weight and interleaves:
                what = "this source has no weight, and others have one"
                yield ("sources", number), what, "give every source a weight, or none"

    def mixture(self, counts: Sequence[int], seed: int) -> Sequence[tuple[int, int]]:
        """Return the order of `interleave_datasets` for these settings and this seed, to the row.

        Raises DataError (E120) where the weights would draw more than `MOST` rows.
        """
        if self.config.mixing == "concatenate":
            return super().mixture(counts, seed)
        weights = [source.weight for source in self.config.sources]
        stopping = self.config.stopping_strategy
        if any(weight is None for weight in weights):
            return in_turn(counts, stopping)
        total = sum(weight or 0.0 for weight in weights)
        shares = [(weight or 0.0) / total for weight in weights]
        if stopping != "first_exhausted":
            source, needed = max(
                enumerate(count / share for count, share in zip(counts, shares, strict=True)),
                key=lambda pair: pair[1],
            )
            if needed > MOST:
                raise DataError(
                    "E120",
                    f"to draw the {counts[source]:,} rows of source {source + 1}, whose share is"
                    f" {shares[source]:.3g}, about {needed:,.0f} rows would be drawn",
                    fix="raise its weight, or write stopping_strategy: first_exhausted",
                )
        return by_shares(counts, shares, stopping, seed)

    def is_local(self) -> bool:
        return all(source.is_local() for source in self.sources)

    def records(self, split: str) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Yield the records of a split of every source, each with the number of its source."""
        for number, source in enumerate(self.sources):
            for origin, record in source.records(split):
                yield origin, {"source": number, "record": record}

    def row(self, record: Mapping[str, Any], origin: str) -> Row:
        if not isinstance(record.get("record"), Mapping) or "source" not in record:
            raise DataError("E101", f"{origin}: the record names no source")
        source: Dataset[Any] = self.sources[record["source"]]
        return source.row(record["record"], origin)

    def ask(self, question: str) -> Prompt:
        """Return a question as the first source that asks in messages asks it, or as the first."""
        asked = [source.ask(question) for source in self.sources]
        return next((one for one in asked if not isinstance(one, str)), asked[0])

    def row_kind(self) -> RowKind:
        """Return the kind of the first source's rows, or chat where some are conversations."""
        kinds = [source.row_kind() for source in self.sources]
        return "chat" if "chat" in kinds else kinds[0]


def in_turn(counts: Sequence[int], stopping: Stopping) -> list[tuple[int, int]]:
    """Return one row of each source after the other, in whole rounds; see `Dataset.mixture`."""
    once = stopping == "all_exhausted_without_replacement"
    rounds = min(counts) if stopping == "first_exhausted" else max(counts)
    return [
        (source, number % count)
        for number in range(rounds)
        for source, count in enumerate(counts)
        if number < count or not once
    ]


def by_shares(
    counts: Sequence[int], shares: Sequence[float], stopping: Stopping, seed: int
) -> list[tuple[int, int]]:
    """Return the next row of a source that is drawn by the shares, until one or all are through."""
    once = stopping == "all_exhausted_without_replacement"
    taken, left = [0] * len(counts), {n for n, count in enumerate(counts) if count}
    made: list[tuple[int, int]] = []
    for source in _draws(shares, seed):
        if once and source not in left:
            continue
        made.append((source, taken[source] % counts[source]))
        taken[source] += 1
        if taken[source] == counts[source]:
            left.discard(source)
            if stopping == "first_exhausted" or not left:
                break
    return made


def _draws(shares: Sequence[float], seed: int) -> Iterator[int]:
    import numpy as np

    generator = np.random.default_rng(seed)
    for _ in cycle((None,)):
        yield from generator.choice(len(shares), size=_BLOCK, p=shares).tolist()


@hookimpl
def llmft_datasets() -> list[type[Mix]]:
    return [Mix]
