"""The contract kit fails on tasks that break the contract, and on these only."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmft.api import DataError, PromptRow, StageResult, Task, TaskConfig
from llmft.testing import TaskContract

Catches = Callable[..., None]


class Count(Task[TaskConfig]):
    """Counts the letters of prompts."""

    method = "count"
    Config = TaskConfig
    rows = ("prompt",)
    produces = "counts"

    def run(self, context: Any) -> StageResult:
        rows = context.data.rows()
        if not all(isinstance(row, PromptRow) for row in rows):
            raise DataError("E300", "a row is no prompt")
        return self.write(context, [{"letters": len(row.prompt)} for row in rows])

    def write(self, context: Any, lines: list[Any]) -> StageResult:
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (context.folder / "rows.jsonl").write_text(text)
        return StageResult(self.produces, metrics={"lines": float(len(lines))})


class TestCount(TaskContract):
    method_class = Count


class CountsWhatever(Count):
    """Counts rows of any kind."""

    def run(self, context: Any) -> StageResult:
        return self.write(context, [{"letters": len(str(row))} for row in context.data.rows()])


class WritesNothing(Count):
    """Says that it is done, and leaves no rows."""

    def run(self, context: Any) -> StageResult:
        super().run(context)
        (context.folder / "rows.jsonl").unlink()
        return StageResult(self.produces)


class WritesAnEmptyFile(Count):
    """Leaves a file without a row."""

    def run(self, context: Any) -> StageResult:
        super().run(context)
        return self.write(context, [])


class MakesSomethingElse(Count):
    """Says that it made what it does not declare."""

    def run(self, context: Any) -> StageResult:
        super().run(context)
        return StageResult("poems")


class MeasuresNaN(Count):
    """Has a metric that is no number."""

    def run(self, context: Any) -> StageResult:
        super().run(context)
        return StageResult(self.produces, metrics={"mean": float("nan")})


class DrawsAnew(Count):
    """Draws without the seed."""

    def run(self, context: Any) -> StageResult:
        super().run(context)
        return self.write(context, [{"letters": random.random()}])


class ReadsNoRowsButSays(Count):
    """Reads rows that it does not declare."""

    rows = ()


class MendsWhatItReads(Count):
    """Writes into the folder of an earlier stage."""

    def run(self, context: Any) -> StageResult:
        (context.stage_folder("before") / "rows.jsonl").write_text("mine")
        return super().run(context)


class ProducesASentence(Count):
    """Produces what no reference can name."""

    produces = "some counts"


TASKS: list[tuple[type[Any], str]] = [
    (CountsWhatever, "test_it_refuses_rows_of_another_kind"),
    (WritesNothing, "test_it_writes_rows_and_says_what_they_are"),
    (WritesAnEmptyFile, "test_it_writes_rows_and_says_what_they_are"),
    (MakesSomethingElse, "test_it_writes_rows_and_says_what_they_are"),
    (MeasuresNaN, "test_it_writes_rows_and_says_what_they_are"),
    (DrawsAnew, "test_it_does_the_same_twice"),
    (ReadsNoRowsButSays, "test_it_writes_rows_and_says_what_they_are"),
    (MendsWhatItReads, "test_it_leaves_earlier_stages_as_they_are"),
    (ProducesASentence, "test_it_declares_its_rows_and_what_it_produces"),
]


@pytest.mark.parametrize(("task", "test"), TASKS)
def test_the_kit_catches_a_wrong_task(task: Any, test: str, catches: Catches) -> None:
    def earlier(self: Any, folder: Path) -> dict[str, Path]:
        (folder / "rows.jsonl").write_text("theirs")
        return {"before": folder}

    catches(TaskContract, task, test, earlier=earlier)
