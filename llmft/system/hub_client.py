"""The hub's client, held to the one host that the screen names: no other is sent the user's key."""

from __future__ import annotations

import os
from functools import cache
from typing import Any
from urllib.parse import urlsplit


def endpoint() -> str:
    """Return the hub's address: what HF_ENDPOINT of the user's environment says, or the default."""
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or str(constants.ENDPOINT)).rstrip("/")


def host() -> str:
    """Return the name of the hub's host, with its port where the address gives one."""
    return urlsplit(endpoint()).netloc.rpartition("@")[2]


@cache
def guard() -> None:
    """Take the user's key out of every request that goes elsewhere: a redirect's, a file store's.

    Large files go to addresses that the hub hands out, which are signed and need no key. To be
    called before the hub is asked; a second call changes nothing.
    """
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils._http import default_client_factory

    def guarded() -> Any:
        client = default_client_factory()
        hooks = client.event_hooks
        client.event_hooks = {**hooks, "request": [*hooks.get("request", ()), _without_key]}
        return client

    set_client_factory(guarded)


def _without_key(request: Any) -> None:
    """Drop the key from a request to a host that is not the hub's."""
    asked, hub = urlsplit(str(request.url)), urlsplit(endpoint())
    same = (asked.scheme, asked.hostname, asked.port) == (hub.scheme, hub.hostname, hub.port)
    # The hub has services beside it, such as datasets-server.huggingface.co.
    beside = asked.scheme == "https" and hub.hostname == "huggingface.co"
    beside = beside and (asked.hostname or "").endswith(".huggingface.co")
    if not (same or beside):
        for name in ("authorization", "cookie"):
            request.headers.pop(name, None)
