"""What a person on the command line accepts for one resume, and no recipe can."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class Accepted:
    """data: other rows than the run began with. plugins: other code of one version.

    lock: a lock whose holder cannot be asked whether it lives, on another machine.
    """

    data: bool = False
    plugins: bool = False
    lock: bool = False


NOTHING = Accepted()
_ACCEPTED: ContextVar[Accepted] = ContextVar("accepted", default=NOTHING)


def accepted() -> Accepted:
    """Return what is accepted here."""
    return _ACCEPTED.get()


@contextmanager
def accepting(what: Accepted) -> Iterator[None]:
    """Accept it while the block runs."""
    token = _ACCEPTED.set(what)
    try:
        yield
    finally:
        _ACCEPTED.reset(token)
