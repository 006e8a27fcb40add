"""The contract of a data set, as tests: honest rows, located errors and fair metrics."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from llmft import api
from llmft.registry.contract import Kind
from llmft.testing.config_checks import SettingsContract

ROW_TYPES: dict[str, type[Any]] = {
    "text": api.TextRow,
    "completion": api.CompletionRow,
    "chat": api.ChatRow,
    "preference": api.PreferenceRow,
    "unpaired": api.UnpairedRow,
    "classification": api.ClassificationRow,
    "prompt": api.PromptRow,
}
ODD_ANSWERS = ("", " ", "Oslo", "the answer is Oslo", "\x00", "ß🙂", "a" * 10_000)


class DatasetContract(SettingsContract):
    """Checks a data set on the files that `write` makes.

    configs: blocks of settings for which the Config can be made without files.
    bad_records: raw records that the data set must refuse. split: one that `write` makes.
    """

    kind: ClassVar[Kind] = "dataset"
    split: ClassVar[str] = "train"
    bad_records: ClassVar[Sequence[Mapping[str, Any]]] = ()

    @abstractmethod
    def write(self, folder: Path) -> Mapping[str, Any]:
        """Make the data set's files in a folder, and return the settings that read them."""

    def test_its_rows_are_what_it_declares(self, tmp_path: Path) -> None:
        dataset = self._made(tmp_path)
        kind = dataset.row_kind()
        assert kind in self.method_class.rows, f"'{kind}' is not among {self.method_class.rows}"
        rows = list(self._rows(dataset))
        assert rows, f"the split '{self.split}' has no row"
        for origin, row in rows:
            assert isinstance(row, ROW_TYPES[kind]), f"{origin}: {row!r} is no '{kind}' row"
            assert origin, "a record comes without its origin"
            assert row.origin == origin, f"the row says '{row.origin}', its record '{origin}'"
        origins = [origin for origin, _ in rows]
        assert len(set(origins)) == len(origins), "two rows claim the same origin"

    def test_it_reads_the_same_rows_twice(self, tmp_path: Path) -> None:
        settings = self.write(tmp_path)
        files = _contents(tmp_path)
        dataset = self.make(settings)
        first = list(self._rows(dataset))
        assert list(self._rows(dataset)) == first, "a second reading gives other rows"
        assert list(self._rows(self.make(settings))) == first, "another instance gives other rows"
        assert _contents(tmp_path) == files, "reading the data changed its folder"

    def test_it_refuses_a_split_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(api.DataError):
            list(self._made(tmp_path).records("no-such-split"))

    def test_it_refuses_bad_records_by_their_origin(self, tmp_path: Path) -> None:
        dataset, origin = self._made(tmp_path), "made-up.jsonl:4711"
        assert self.bad_records, "give at least one record in 'bad_records'"
        for record in self.bad_records:
            with pytest.raises(api.DataError) as caught:
                dataset.row(record, origin)
            assert origin in str(caught.value), f"the error does not say where: {caught.value}"

    def test_its_metrics_are_fair(self, tmp_path: Path) -> None:
        known = [
            answers
            for _, row in self._rows(self._made(tmp_path))
            if (answers := getattr(row, "answers", ()))
        ]
        for name, metric in self.method_class.metrics.items():
            for answers in known[:50] or [("Oslo", "Oslo, Norway")]:
                for right in answers:
                    score = metric(right, answers)
                    assert score == 1.0, f"'{name}' gives {score} to the right answer {right!r}"
                for odd in ODD_ANSWERS:
                    score = metric(odd, answers)
                    assert 0.0 <= score <= 1.0, f"'{name}' gives {score} to {odd!r}"
                wrong = metric("zyzzyva quokka", answers)
                assert wrong < 1.0, f"'{name}' gives {wrong} to a wrong answer"

    def _made(self, folder: Path) -> Any:
        return self.make(self.write(folder))

    def _rows(self, dataset: Any) -> Iterable[tuple[str, Any]]:
        for origin, record in dataset.records(self.split):
            yield origin, dataset.row(record, origin)


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
