"""The settings of methods: the base of each kind's block in a recipe. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from llmft.api.settings import Line, Settings, Share


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
    """Base of every data set's settings."""

    method: Line = Field(description="which dataset method")
    split: Line = Field("train", description="the split to train on")
    limit: int | None = Field(
        None, ge=1, le=10_000_000_000, description="use only this many rows, the first of the split"
    )
    on_bad_row: Literal["fail", "skip"] = Field(
        "fail", description="what happens to a row that cannot be used; skipped rows are counted"
    )
    max_bad_rows: Share = Field(
        1.0, description="stop if more than this share of the rows is skipped"
    )


class TrackerConfig(Settings):
    """Base of every tracker's settings."""

    method: Line = Field(description="which tracker method")
