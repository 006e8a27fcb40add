"""Fields as a reader wants them."""

from __future__ import annotations

from typing import Annotated, Literal

from llmft.api import AlignmentConfig, Field, Settings, StageRef
from llmft.cli.commands.fields import fields


class Inner(Settings):
    """A block."""

    depth: int = Field(1, ge=1, lt=5, description="how deep")


class Config(AlignmentConfig):
    """Every shape of field."""

    size: int | None = Field(None, ge=1, le=8, description="how large")
    rate: float = Field(1e-4, gt=0, description="how fast")
    how: Literal["a", "b"] = Field("a", description="which way")
    names: list[str] = Field(default_factory=lambda: ["x"], max_length=3, description="which")
    by_name: dict[str, int] = Field(default_factory=dict, description="each")
    word: str = Field("w", pattern="^w$", description="a word")
    inner: Inner = Field(default_factory=Inner, description="within")
    maybe: Inner | None = Field(None, description="perhaps within")
    reward: Annotated[str, StageRef("reward_model")] = Field(description="who judges")


def test_every_shape_of_field_has_words():
    rows = {row.key: (row.type, row.default, row.bounds) for row in fields(Config)}
    assert rows == {
        "method": ("str", "", "1 to 4096 characters"),
        "size": ("int or null", "null", "1 to 8"),
        "rate": ("float", "0.0001", "above 0"),
        "how": ("a | b", '"a"', ""),
        "names": ("list of str", '["x"]', "0 to 3 items"),
        "by_name": ("mapping to int", "{}", ""),
        "word": ("str", '"w"', "matches ^w$"),
        "inner": ("block", "", ""),
        "inner.depth": ("int", "1", "at least 1 and below 5"),
        "maybe": ("block or null", "", ""),
        "maybe.depth": ("int", "1", "at least 1 and below 5"),
        "reward": ("an earlier stage that produces reward_model", "", ""),
    }


def test_what_must_be_given_is_marked():
    assert [row.key for row in fields(Config) if row.required] == ["method", "reward"]
