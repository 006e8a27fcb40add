"""The rows that an earlier stage of the recipe made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from llmft.api import (
    DataError,
    Dataset,
    DatasetConfig,
    EnvironmentFault,
    Field,
    Line,
    PreferenceRow,
    Row,
    StageRef,
    hookimpl,
)
from llmft.toolkit import messages_of, read_file, records_of_parts, text_of
from llmft_datasets.short_answers import METRICS


class FromStage(Dataset["FromStage.Config"]):
    """The preferences that an earlier `rank` stage made. To score on some, set evaluate.holdout."""

    method = "from_stage"
    rows = ("preference",)
    metrics = METRICS

    class Config(DatasetConfig):
        """Which stage."""

        stage: Annotated[Line, StageRef("preferences")] = Field(
            description="the stage that made the rows"
        )

    def records(self, split: str) -> Iterable[tuple[str, Mapping[str, Any]]]:
        return records_of_parts(split, self._whole)

    def _whole(self, split: str) -> Iterable[tuple[str, Mapping[str, Any]]]:
        if split != "train":
            raise DataError(
                "E109",
                f"what a stage made has no split '{split}'",
                fix="hold out some of its rows: evaluate.holdout: 0.1",
            )
        if "stage" not in self.upstream:
            raise EnvironmentFault("E201", f"the stage '{self.config.stage}' has not made them yet")
        return read_file(self.upstream["stage"] / "rows.jsonl")

    def row(self, record: Mapping[str, Any], origin: str) -> Row:
        asked = record.get("prompt")
        turns = isinstance(asked, list)
        return PreferenceRow(
            messages_of(asked, origin) if turns else text_of(record, "prompt", origin),
            text_of(record, "chosen", origin),
            text_of(record, "rejected", origin),
            record.get("margin"),
            origin,
            tuple(record.get("answers") or ()),
        )


@hookimpl
def llmft_datasets() -> list[type[FromStage]]:
    return [FromStage]
