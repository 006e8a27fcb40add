"""Where MLflow keeps runs: what the user's environment says, and nothing else."""

from __future__ import annotations

import os
import urllib.parse
from importlib.util import find_spec

from llmft.api import EnvironmentFault
from llmft_trackers.address import plain_address

_FIX = "correct MLFLOW_TRACKING_URI: an http address, a folder, or sqlite:////path/of/a/file.db"


def store_address() -> str:
    """Return the server's address, or the store's absolute place; '' where none is named.

    Raises EnvironmentFault (E211) for an address that is not plain, and for one of another kind:
    whom it leads to cannot be shown.
    """
    found = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    if is_server(found):
        return plain_address(found, "mlflow", _FIX)
    if found.startswith("sqlite:///"):
        if find_spec("sqlalchemy") is None:
            what = "a database of MLflow's needs the package mlflow itself, not mlflow-skinny"
            raise EnvironmentFault("E206", what, fix="pip install mlflow")
        return f"sqlite:///{os.path.abspath(found.removeprefix('sqlite:///'))}"
    if found.startswith("file:"):
        found = urllib.parse.unquote(urllib.parse.urlsplit(found).path)
    if ":" in found or found == "databricks":
        what = "MLFLOW_TRACKING_URI names what is no http server, folder or SQLite file"
        raise EnvironmentFault("E211", what, fix=_FIX)
    return os.path.abspath(found) if found else ""


def is_server(address: str) -> bool:
    """Return whether an address is that of a server."""
    return address.startswith(("http:", "https:"))
