"""What every block of settings is made of: its base, and the types of common fields.

The blocks have the names that users know: `model.quantization` those of BitsAndBytesConfig, `train`
those of TrainingArguments. Every field has a type, a bound and a description.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from llmft.api.splits import checked_split

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
Line = Annotated[str, Field(min_length=1, max_length=4096)]
Split = Annotated[Line, AfterValidator(checked_split)]
"""A split, or parts of splits as `datasets` writes them."""
Share = Annotated[float, Field(ge=0, le=1)]
Interval = Annotated[int, Field(ge=1, le=100_000_000)] | Annotated[float, Field(gt=0, lt=1)]
"""A number, such as of optimiser steps or rows; or, below 1, a share of all."""


class Settings(BaseModel):
    """A frozen block of settings that refuses unknown keys, NaN, and values of another type."""

    # Validators are built when first used: most commands need few of them.
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, defer_build=True
    )
