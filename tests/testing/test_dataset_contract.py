"""The contract kit fails on data sets that break the contract, and on these only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from llmft.api import CompletionRow, DataError, Dataset, DatasetConfig, Field, PromptRow
from llmft.testing import DatasetContract

Catches = Callable[..., None]


class LinesConfig(DatasetConfig):
    """Settings of a file of lines."""

    path: str = Field("none", description="the file")


class Lines(Dataset[LinesConfig]):
    """One question and answer in each line; right in all that the contract asks."""

    method = "lines"
    Config = LinesConfig
    rows = ("completion",)
    metrics: ClassVar[Mapping[str, Any]] = {"exact": lambda said, right: float(said in right)}

    def records(self, split: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        if split != "train":
            raise DataError("E300", f"there is no split '{split}'")
        for number, line in enumerate(Path(self.config.path).read_text().splitlines(), 1):
            yield f"{self.config.path}:{number}", {"line": line}

    def row(self, record: Mapping[str, Any], origin: str) -> Any:
        question, tab, answer = str(record.get("line", "")).partition("\t")
        if not tab:
            raise DataError("E301", f"{origin}: no tab between question and answer")
        return CompletionRow(question, answer, (answer,), origin)


class LinesContract(DatasetContract):
    method_class = Lines
    bad_records = [{}, {"line": "no tab"}]

    def write(self, folder: Path) -> Mapping[str, Any]:
        (folder / "lines.tsv").write_text("capital of Norway?\tOslo\nof Peru?\tLima\n")
        return {"path": str(folder / "lines.tsv")}


class TestLines(LinesContract):
    pass


class GivesAnotherKind(Lines):
    """Declares completions and gives prompts."""

    def row(self, record: Mapping[str, Any], origin: str) -> Any:
        row = super().row(record, origin)
        return PromptRow(row.prompt, row.answers, origin)


class HidesTheOrigin(Lines):
    """Gives rows that do not say where they are from."""

    def row(self, record: Mapping[str, Any], origin: str) -> Any:
        row = super().row(record, origin)
        return CompletionRow(row.prompt, row.completion, row.answers)


class ReadsOnce(Lines):
    """Is empty when it is read again."""

    _read = False

    def records(self, split: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        if not self._read:
            self._read = True
            yield from super().records(split)


class TakesAnySplit(Lines):
    """Gives the training rows whatever is asked for."""

    def records(self, split: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        return super().records("train")


class TakesBadRecords(Lines):
    """Makes something of anything."""

    def row(self, record: Mapping[str, Any], origin: str) -> Any:
        return CompletionRow("?", str(record), ("x",), origin)


class ComplainsOfNowhere(Lines):
    """Refuses without saying where."""

    def row(self, record: Mapping[str, Any], origin: str) -> Any:
        try:
            return super().row(record, origin)
        except DataError:
            raise DataError("E301", "no tab between question and answer") from None


class WritesWhereItReads(Lines):
    """Leaves an index beside the data."""

    def records(self, split: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        Path(self.config.path).with_suffix(".index").write_text("1")
        return super().records(split)


class ScoresTooHigh(Lines):
    """Has a metric beyond 1."""

    metrics: ClassVar[Mapping[str, Any]] = {"length": lambda said, right: float(len(said))}


class ScoresAllAlike(Lines):
    """Has a metric that praises everything."""

    metrics: ClassVar[Mapping[str, Any]] = {"kind": lambda said, right: 1.0}


DATASETS: list[tuple[type[Any], str]] = [
    (GivesAnotherKind, "test_its_rows_are_what_it_declares"),
    (HidesTheOrigin, "test_its_rows_are_what_it_declares"),
    (ReadsOnce, "test_it_reads_the_same_rows_twice"),
    (WritesWhereItReads, "test_it_reads_the_same_rows_twice"),
    (TakesAnySplit, "test_it_refuses_a_split_that_is_not_there"),
    (TakesBadRecords, "test_it_refuses_bad_records_by_their_origin"),
    (ComplainsOfNowhere, "test_it_refuses_bad_records_by_their_origin"),
    (ScoresTooHigh, "test_its_metrics_are_fair"),
    (ScoresAllAlike, "test_its_metrics_are_fair"),
]


@pytest.mark.parametrize(("dataset", "test"), DATASETS, ids=lambda x: getattr(x, "__name__", x))
def test_the_kit_catches_a_wrong_dataset(dataset: Any, test: str, catches: Catches) -> None:
    catches(LinesContract, dataset, test)
