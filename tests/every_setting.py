"""What the tests of settings share: a case sets one field away from its default, and looks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from pydantic import BaseModel


@dataclass(frozen=True)
class Case:
    """A value of one field, how its effect is seen, and what is then seen.

    see: what shows the effect, of the settings and a `Lab`. also: other settings of the same block,
    with and without the field. was: what is seen with the field at its default, where that is known
    too; in any case it must be something else. alone: the block cannot be without this field.
    """

    value: Any
    see: Callable[[Any, Lab], Any]
    seen: Any
    also: Mapping[str, Any] = field(default_factory=dict)
    was: Any = None
    alone: bool = False


@dataclass(frozen=True)
class Lab:
    """What a look may need of pytest. run: runs stages over a tiny model, as conftest has it."""

    folder: Any
    patch: pytest.MonkeyPatch
    run: Any = None


def check(settings: type[BaseModel], name: str, case: Case, lab: Lab, **base: Any) -> None:
    """Fail where a field does not do what its case says, or does it at its default already."""
    block = {**base, **case.also}
    usual = {key: value for key, value in block.items() if key != name}
    found = case.see(settings.model_validate({**block, name: case.value}), lab)
    assert found == _near(case.seen), f"{name}: {case.value!r}"
    if not case.alone and not settings.model_fields[name].is_required():
        before = case.see(settings.model_validate(usual), lab)
        assert before != found, f"{name} does nothing"
        if case.was is not None:
            assert before == _near(case.was), f"{name} at its default"


def _near(seen: Any) -> Any:
    numbers = isinstance(seen, float) or (
        isinstance(seen, list) and seen and all(isinstance(one, float) for one in seen)
    )
    return pytest.approx(seen, rel=1e-4, abs=1e-6) if numbers else seen


def without_case(settings: type[BaseModel], cases: Mapping[str, Any]) -> set[str]:
    """Return the fields that no case is about, and the cases that no field has; `method` is none.

    A field that is a block of settings itself is not asked for: its own fields are.
    """
    fields = {
        name
        for name, info in settings.model_fields.items()
        if name != "method"
        and not (isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel))
    }
    return fields ^ set(cases)
