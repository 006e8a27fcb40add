"""The client of an endpoint that a command names: its host is shown before anything is sent."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from llmft.cli.commands.output import printable
from llmft.cli.commands.serve import KEY_VARIABLE

if TYPE_CHECKING:
    from llmft.system.api_client import ApiClient


def client_for(url: str) -> ApiClient:
    """Return what asks the endpoint, after saying which host that is and whether it gets a key."""
    from llmft.system.api_client import ApiClient

    client = ApiClient.at(url, os.environ.get(KEY_VARIABLE) or None)
    key = f"with the key of {KEY_VARIABLE}" if client.key else f"without a key ({KEY_VARIABLE})"
    plain = ", unencrypted" if client.base.startswith("http:") else ""
    print(printable(f"asking {client.host}{plain}, {key}"), file=sys.stderr, flush=True)
    return client
