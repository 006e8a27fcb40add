"""What the tests of the contract kit share: a wrong method, held against one of the kit's tests."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmft.testing import tiny_llama


@pytest.fixture
def catches(tmp_path: Path) -> Callable[..., None]:
    """Return what asserts that a test of a contract fails on a method.

    errors: what else than an assertion it may fail with. own: what the contract's subclass brings.
    """

    def catches(
        contract: type[Any], method: type[Any], test: str, *errors: type[Exception], **own: Any
    ) -> None:
        kit = type("Contract", (contract,), {"method_class": method, **own})()
        fails = getattr(kit, test)
        offered = {"settings": {}, "base": tiny_llama, "tmp_path": tmp_path}
        names = fails.__code__.co_varnames[1 : fails.__code__.co_argcount]
        given = {name: copy.copy(offered[name]) for name in names}
        with pytest.raises((AssertionError, pytest.fail.Exception, *errors)):
            fails(**given)

    return catches
