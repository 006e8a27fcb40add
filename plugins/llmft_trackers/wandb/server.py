"""Which server wandb talks to, and with whose key, as wandb itself finds them."""

from __future__ import annotations

import configparser
import netrc
import os
import urllib.parse
from pathlib import Path

from llmft_trackers.address import plain_address


def base_url() -> str:
    """Return the address of the server that wandb talks to: the user's own, or the default.

    The environment names it, or the user's configuration; a file of the working folder never does.
    Raises EnvironmentFault (E211) where it is no plain http address.
    """
    found = os.environ.get("WANDB_BASE_URL")
    if not found:
        folder = os.environ.get("WANDB_CONFIG_DIR") or Path.home() / ".config" / "wandb"
        settings = configparser.ConfigParser(interpolation=None)
        try:
            settings.read(Path(folder) / "settings")
            found = settings.get("default", "base_url", fallback=None)
        except (configparser.Error, OSError, UnicodeDecodeError):
            found = None
    fix = "correct WANDB_BASE_URL, or base_url in wandb's own settings"
    return plain_address(found or "https://api.wandb.ai", "wandb", fix)


def saved_key(base: str) -> str | None:
    """Return the key that `wandb login` wrote down for this server."""
    named, netloc = os.environ.get("NETRC"), urllib.parse.urlsplit(base).netloc
    for path in (named,) if named else (Path.home() / ".netrc", Path.home() / "_netrc"):
        try:
            entry = netrc.netrc(path).authenticators(netloc.rpartition("@")[2])
        except (OSError, netrc.NetrcParseError):
            continue
        if entry and entry[2]:
            return entry[2]
    return None
