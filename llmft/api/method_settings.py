"""The settings of methods: the base of each kind's block in a recipe. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

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
    on_bad_row: Literal["fail", "skip"] = Field(
        "fail", description="what happens to a row that cannot be used; skipped rows are counted"
    )
    max_bad_rows: Share = Field(
        1.0, description="stop if more than this share of the rows is skipped"
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


class TrackerConfig(Settings):
    """Base of every tracker's settings."""

    method: Line = Field(description="which tracker method")
