"""Which server SwanLab talks to, and with whose key."""

from __future__ import annotations

import netrc
import os
from pathlib import Path

from llmft_trackers.address import plain_address

_DEFAULT = "https://api.swanlab.cn"


def api_host() -> str:
    """Return the address of the server: SWANLAB_API_HOST, that of `swanlab login`, or the default.

    A file of the working folder never names it. Raises EnvironmentFault (E211) where it is no plain
    http address.
    """
    found = os.environ.get("SWANLAB_API_HOST") or (_login() or ("", ""))[0] or _DEFAULT
    if "://" not in found:
        found = f"https://{found}"
    fix = "correct SWANLAB_API_HOST, or log in again: swanlab login --relogin"
    return plain_address(found, "swanlab", fix).removesuffix("/api")


def saved_key(server: str) -> str | None:
    """Return the key that `swanlab login` wrote down for this server."""
    login = _login()
    return login[1] if login and login[0].removesuffix("/api") == server else None


def _login() -> tuple[str, str] | None:
    """Return the address and the key that are written down in the home folder."""
    named = os.environ.get("SWANLAB_ROOT") or os.environ.get("SWANLAB_SAVE_DIR")
    folder = Path(named).expanduser() if named else Path.home() / ".swanlab"
    try:
        hosts = netrc.netrc(folder / ".netrc").hosts
    except (OSError, netrc.NetrcParseError):
        return None
    for machine, (_, _, key) in hosts.items():
        return (machine if "://" in machine else f"https://{machine}").rstrip("/"), key
    return None
