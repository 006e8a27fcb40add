"""Tracker `mlflow`: the run as MLflow shows it, on the user's server or in files of the run folder.

MLflow runs in a process of its own: see `writer.py`, and `llmft_trackers/reporter.py`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import model_validator

from llmft.api import Field, Line, RunInfo, Tracker, TrackerConfig, hookimpl
from llmft_trackers.address import host
from llmft_trackers.mlflow.store import is_server, store_address
from llmft_trackers.process import TrackerProcess, variables_without_secrets
from llmft_trackers.reporter import Reporter, require

_LOGIN = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")


class MLflow(Reporter):
    """Report to MLflow: to the server or the files that MLFLOW_TRACKING_URI names.

    Where it is not set, the run's folder gets `mlflow`, a file store. No recipe names an address.
    """

    method = "mlflow"

    class Config(TrackerConfig):
        """Settings of the mlflow tracker, by MLflow's names."""

        method: Literal["mlflow"] = Field("mlflow", description="report to MLflow")
        experiment_name: Line | None = Field(
            None, description="the experiment; default: MLFLOW_EXPERIMENT_NAME, else 'llmft'"
        )
        run_name: Line | None = Field(
            None, description="the run's name there; default: its name and its folder's"
        )

        @model_validator(mode="after")
        def _installed(self) -> MLflow.Config:
            require("mlflow", "'llmft[mlflow]'")
            return self

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._store = store_address()  # resolved once: shown and told are the same
        self.contacts = host(self._store) if is_server(self._store) else ""

    def begin(self, run: RunInfo) -> tuple[TrackerProcess, Mapping[str, Any]]:
        """Return the process that tells MLflow, and which run it is."""
        config, kept = self.config, str(run.folder.absolute() / "mlflow")
        named = os.environ.get("MLFLOW_EXPERIMENT_NAME")
        return (
            TrackerProcess("mlflow", "llmft_trackers.mlflow.writer", _environment()),
            {
                "store": self._store or kept,
                "kept": kept,
                "experiment": config.experiment_name or named or "llmft",
                "name": config.run_name or f"{run.name} {run.folder.name}",
                "id": run.folder.name,
                "config": dict(run.recipe),
            },
        )


def _environment() -> dict[str, str]:
    """Return the environment with MLflow's login, and none of what names a run or an address."""
    kept = variables_without_secrets(lambda name: name in _LOGIN)
    return {
        name: value
        for name, value in kept.items()
        if name.startswith("MLFLOW_TRACKING_") or not name.startswith(("MLFLOW_", "_MLFLOW_"))
        if name != "MLFLOW_TRACKING_URI"
    }


@hookimpl
def llmft_trackers() -> list[type[Tracker[Any]]]:
    """Return the mlflow tracker."""
    return [MLflow]
