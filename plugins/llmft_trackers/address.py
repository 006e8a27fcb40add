"""The address of a tracker's server: a plain one, resolved once, so that what is shown is told."""

from __future__ import annotations

import os
import re
import urllib.parse
from collections.abc import Iterable

from llmft.api import EnvironmentFault

_ADDRESS = re.compile(r"https?://(?:[^\s/?#@\\]*@)?[\w.:\[\]-]+(?:/[\w./~-]*)?", re.ASCII)


def plain_address(found: str, whose: str, fix: str) -> str:
    """Return an address without its last slash.

    Raises EnvironmentFault (E211) where it is no plain http address: programs disagree on what
    host an odd one means.
    """
    found = found.rstrip("/")
    if not _ADDRESS.fullmatch(found):
        what = f"the address of {whose}'s server is no plain http address"
        raise EnvironmentFault("E211", what, fix=fix)
    return found


def host(base: str) -> str:
    """Return the host's name in an address."""
    return urllib.parse.urlsplit(base).hostname or ""


def without_login(base: str) -> str:
    """Return an address as a person may see it."""
    return re.sub(r"://[^/\s@]*@", "://", base)


def absolute_variables(names: Iterable[str]) -> None:
    """Let variables that may name a file relative to the working folder, which is left, stay."""
    for name in names:
        if value := os.environ.get(name):
            os.environ[name] = os.path.abspath(os.path.expanduser(value))
