"""The settings of methods: the base of each kind's block in a recipe. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from llmft.api.settings import Line, Name, Settings, Share, Split


@dataclass(frozen=True, slots=True)
class StageRef:
    """Marks a Config field that names an earlier stage, and what that stage must produce.

    `reward_model: Annotated[str, StageRef("reward_model")]`
    """

    produces: str


class AdapterConfig(Settings):
    """Base of every adapter's settings."""

    method: Line = Field(description="which adapter method")


class AlignmentConfig(Settings):
    """Base of every alignment's settings."""

    method: Line = Field(description="which alignment method")


class CallbackConfig(Settings):
    """Base of every callback's settings."""

    method: Line = Field(description="which callback method")


class TaskConfig(Settings):
    """Base of every task's settings."""

    method: Line = Field(description="which task method")


class RewardConfig(Settings):
    """Base of every reward function's settings.

    A method's Config may hold such a block: `reward: SerializeAsAny[RewardConfig] | None`; or a
    list of them: `rewards: list[SerializeAsAny[RewardConfig]]`.
    """

    method: Line = Field(description="which reward method")
    weight: float = Field(
        1.0, ge=-1e6, le=1e6, description="what its score is multiplied by, where scores are added"
    )


Value = str | bool | int | float


class Condition(Settings):
    """Rows by the value of a column; exactly one test."""

    column: Line = Field(description="a column of the file")
    equals: Value | None = Field(None, description="the column is this")
    not_equals: Value | None = Field(None, description="the column is anything but this")
    one_of: list[Value] | None = Field(
        None, min_length=1, max_length=1000, description="the column is one of these"
    )
    none_of: list[Value] | None = Field(
        None, min_length=1, max_length=1000, description="the column is none of these"
    )
    below: float | None = Field(None, description="the column is a number below this")
    above: float | None = Field(None, description="the column is a number above this")
    is_empty: bool | None = Field(
        None, description="the column is absent, null, or without text; false: it is not"
    )

    @model_validator(mode="after")
    def _one_test(self) -> Condition:
        if len(self.model_dump(exclude_none=True)) != 2:
            raise ValueError(
                "write one of equals, not_equals, one_of, none_of, below, above and is_empty"
            )
        return self

    @property
    def test(self) -> tuple[str, Any]:
        """The name of the test, and what it compares with."""
        ((name, value),) = self.model_dump(exclude_none=True, exclude={"column"}).items()
        return name, value


class DropRows(Settings):
    """Rows that are left out on purpose, and counted."""

    duplicates: bool = Field(False, description="leave out rows that repeat an earlier one")
    shorter_than: int | None = Field(
        None, ge=1, le=100_000_000, description="leave out rows of fewer tokens, prompt included"
    )
    longer_than: int | None = Field(
        None, ge=1, le=100_000_000, description="leave out rows of more tokens, prompt included"
    )
    where: list[Condition] = Field(
        default_factory=list,
        max_length=100,
        description="leave out rows of which one of these holds, such as {column: score, below: 3}",
    )

    @property
    def by_length(self) -> bool:
        """Whether rows have to be tokenised to know which of them are left out."""
        return self.shorter_than is not None or self.longer_than is not None


class Replacement(Settings):
    """A text in a column that is written otherwise, before a record is read."""

    column: Line = Field(description="a column of the file; null stays null")
    text: str = Field(min_length=1, max_length=10_000, description="the text that is replaced")
    by: str = Field(max_length=10_000, description="what stands in its place")
    at: Literal["anywhere", "start"] = Field(
        "anywhere", description="replace it wherever it stands, or only where the column begins so"
    )

    def of(self, value: str) -> str:
        """Return a column's text with the replacement made."""
        if self.at == "anywhere":
            return value.replace(self.text, self.by)
        return self.by + value[len(self.text) :] if value.startswith(self.text) else value


class DatasetConfig(Settings):
    """Base of every data set's settings.

    A method's Config may hold such blocks, as `mix` does: `sources:
    list[SerializeAsAny[DatasetConfig]]`. They are its sources; see `Dataset.sources`.
    """

    method: Line = Field(description="which dataset method")
    split: Split = Field(
        "train",
        description="the split to train on, or parts of splits as datasets writes them:"
        " train[:20%], train[100:200], train+validation",
    )
    limit: int | None = Field(
        None, ge=1, le=10_000_000_000, description="use only this many rows, the first of the split"
    )
    num_samples: int | None = Field(
        None,
        ge=1,
        le=10_000_000_000,
        description="draw this many rows at random, by the seed; where there are fewer, all of them"
        " as often as it takes, and the rest at random. Rows that are held out count too",
    )
    streaming: bool = Field(
        False,
        description="read the rows while the stage trains, for train.max_steps steps, and hold only"
        " buffer_size of them",
    )
    buffer_size: int = Field(
        1000,
        ge=1,
        le=100_000_000,
        description="of streaming: rows that are read together, in which they are shuffled and"
        " packed; datasets' name",
    )
    on_bad_row: Literal["fail", "skip"] = Field(
        "fail", description="what happens to a row that cannot be used; skipped rows are counted"
    )
    max_bad_rows: Share = Field(
        1.0, description="stop if more than this share of the rows is skipped"
    )
    drop: DropRows = Field(
        default_factory=DropRows, description="which rows are left out on purpose, and counted"
    )
    replace: list[Replacement] = Field(
        default_factory=list,
        max_length=100,
        description="texts in columns that are written otherwise, such as {column: answer, text:"
        " NAME, by: Ada}; one after the other",
    )
    name: Name | None = Field(
        None,
        description="of one of several sources: what its scores are called; default: the last part"
        " of its path, or the method",
    )
    weight: float | None = Field(
        None,
        gt=0,
        le=1e6,
        description="of one of several sources: how often its rows are drawn, beside the weights of"
        " the others",
    )

    @model_validator(mode="after")
    def _of_streaming(self) -> Self:
        if not self.streaming and self.buffer_size != 1000:
            raise ValueError(
                "buffer_size is about streamed rows; write streaming: true, or drop it"
            )
        if self.streaming and self.num_samples is not None:
            raise ValueError(
                "num_samples draws from all of the data, and streaming holds one buffer; drop it"
            )
        if self.streaming and self.drop.duplicates:
            raise ValueError(
                "drop.duplicates compares all of the data, and streaming holds one buffer; drop it"
            )
        return self


class TrackerConfig(Settings):
    """Base of every tracker's settings."""

    method: Line = Field(description="which tracker method")
