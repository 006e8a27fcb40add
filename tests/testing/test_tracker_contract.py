"""The contract kit fails on trackers that break the contract, and on these only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from llmft.api import Tracker, TrackerConfig
from llmft.testing import TrackerContract

Catches = Callable[..., None]


class Diary(Tracker[TrackerConfig]):
    """Writes a line for all that it hears, into the run's folder."""

    method, contacts = "diary", ""
    Config = TrackerConfig

    def run_started(self, run: Any) -> None:
        self.folder = run.folder
        self._write("begins")

    def progress(self, progress: Any) -> None:
        self._write(f"{progress.done}")

    def _write(self, text: str) -> None:
        with (self.folder / "diary.txt").open("a") as file:
            file.write(text)


class TestDiary(TrackerContract):
    method_class = Diary


class WritesBesideTheRun(Diary):
    """Writes into the folder above."""

    def stage_finished(self, stage: str, result: Any) -> None:
        (self.folder.parent / "mine.txt").write_text("mine")


class ForgetsEarlyEnds(Diary):
    """Counts on a stage that never came."""

    def stage_started(self, stage: Any) -> None:
        self.stage = stage

    def run_finished(self, summary: Any) -> None:
        self._write(self.stage.name)


class DividesByTheTotal(Diary):
    """Counts on a total that is not zero."""

    def progress(self, progress: Any) -> None:
        self._write(f"{progress.done / progress.total}")


class DoesNotSayWhomItTells(Diary):
    """Leaves it open whether it uses the network."""

    contacts = None


class ChangesWhatItHears(Diary):
    """Adds to metrics that are not its own."""

    def scored(self, stage: str, when: str, metrics: Any) -> None:
        metrics["mine"] = 1.0


TRACKERS: list[tuple[type[Any], str]] = [
    (WritesBesideTheRun, "test_it_hears_a_whole_run"),
    (ForgetsEarlyEnds, "test_it_hears_a_run_that_ends_early"),
    (DividesByTheTotal, "test_it_hears_odd_numbers"),
    (DoesNotSayWhomItTells, "test_it_declares_a_host_that_a_person_can_read"),
    (ChangesWhatItHears, "test_it_changes_nothing_it_hears"),
]


@pytest.mark.parametrize(("tracker", "test"), TRACKERS)
def test_the_kit_catches_a_wrong_tracker(tracker: Any, test: str, catches: Catches) -> None:
    catches(TrackerContract, tracker, test, AttributeError, ZeroDivisionError)
