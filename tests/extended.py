"""Cases of which the plain run takes a few, and CI all."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def extended(cases: Iterable[Any], plain: Collection[Any]) -> list[Any]:
    """Return the cases for `parametrize`; those that are not in `plain` run with --extended only.

    A case that is a tuple has a value for each name of the parametrisation. Raises ValueError where
    a plain case is none of the cases.
    """
    cases = list(cases)
    if missing := [case for case in plain if case not in cases]:
        raise ValueError(f"no case {missing}")
    return [
        case
        if case in plain
        else pytest.param(
            *(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.extended
        )
        for case in cases
    ]
