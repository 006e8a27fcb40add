"""What a person on the command line accepts for one resume, and no recipe can."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Accepted:
    """data: other rows than the run began with. plugins: other code of one version.

    lock: a lock whose holder cannot be asked whether it lives, on another machine.
    """

    data: bool = False
    plugins: bool = False
    lock: bool = False


NOTHING = Accepted()
