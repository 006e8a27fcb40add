"""How a recipe chooses the layers that an adapter changes, by PEFT's names."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from llmft.api import AdapterConfig, Field, Line


def _some(value: Any) -> Any:
    if value == []:
        raise ValueError("it is empty; write names such as [q_proj], or all-linear")
    return value


def _some_or_none(value: Any) -> Any:
    if value == []:
        raise ValueError("it is empty; write names such as [lm_head], or leave it out")
    return value


def _a_regex(value: str | list[str] | None) -> str | list[str] | None:
    if isinstance(value, str):
        try:
            re.compile(value)
        except (re.error, OverflowError, RecursionError) as error:
            what = f"a string is a regular expression, and this is none: {error}"
            raise ValueError(f"{what}; write a list of names, such as [q_proj]") from error
    return value


Targets = Annotated[Line | list[Line], BeforeValidator(_some), AfterValidator(_a_regex)]
Exclusions = Annotated[
    Line | list[Line] | None, BeforeValidator(_some_or_none), AfterValidator(_a_regex)
]
LayerNumbers = Annotated[
    list[Annotated[int, Field(ge=0, le=100_000)]] | None, Field(min_length=1, max_length=10_000)
]
WholeLayers = Annotated[list[Line] | None, Field(min_length=1, max_length=100)]


class LayerChoice(AdapterConfig):
    """Which layers get an update, and which are trained whole beside them."""

    target_modules: Targets = Field(
        "all-linear",
        description="names or globs of the layers that are adapted, such as [q_proj, v_proj]; a"
        " string: PEFT's regex, which matches a linear layer's whole name; all-linear, alone or in"
        " a list: every linear layer except the output layer",
    )
    exclude_modules: Exclusions = Field(
        None,
        description="names or globs of layers that are left as they are, or a string: a regex, as"
        " in target_modules",
    )
    layers_to_transform: LayerNumbers = Field(
        None, description="indices of the layers to adapt, from 0; default: all"
    )
    modules_to_save: WholeLayers = Field(
        None, description="layers trained in full and saved with the adapter"
    )
