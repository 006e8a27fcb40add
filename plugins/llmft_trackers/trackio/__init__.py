"""Tracker `trackio`: the run in trackio's own files, for its dashboard.

trackio runs in a process of its own: see `writer.py`, and `llmft_trackers/reporter.py`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import model_validator

from llmft.api import EnvironmentFault, Field, Line, RunInfo, Tracker, TrackerConfig, hookimpl
from llmft_trackers.process import TrackerProcess, variables_without_secrets
from llmft_trackers.reporter import Reporter, require

_ELSEWHERE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")
_KEPT = ("TRACKIO_STORAGE_MODE", "TRACKIO_SQLITE_JOURNAL_MODE")


class Trackio(Reporter):
    """Write the run to trackio's files; nothing is sent, and `trackio sync` sends it afterwards.

    They lie where TRACKIO_DIR says, else in `trackio` in the run's folder.
    """

    method = "trackio"
    contacts = ""

    class Config(TrackerConfig):
        """Settings of the trackio tracker, by trackio's names."""

        method: Literal["trackio"] = Field("trackio", description="write trackio's files")
        project: Line = Field("llmft", description="the project")
        name: Line | None = Field(
            None, description="the run's name there, before its folder's; default: the recipe's"
        )
        group: Line | None = Field(None, description="the group that the run belongs to")

        @model_validator(mode="after")
        def _installed(self) -> Trackio.Config:
            require("trackio", "'llmft[trackio]'")
            return self

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        for name in _ELSEWHERE:
            if os.environ.get(name):
                # Its key would go to a program that is run by whoever owns the Space.
                what = f"the trackio tracker writes files and sends nothing, but {name} is set"
                fix = f"unset {name}; afterwards: trackio sync --project {config.project}"
                raise EnvironmentFault("E211", what, fix=fix)
        self._folder = os.environ.get("TRACKIO_DIR")
        if self._folder:
            self._folder = os.path.abspath(os.path.expanduser(self._folder))

    def begin(self, run: RunInfo) -> tuple[TrackerProcess, Mapping[str, Any]]:
        """Return the process that tells trackio, and which run it is."""
        config = self.config
        return (
            TrackerProcess("trackio", "llmft_trackers.trackio.writer", _environment()),
            {
                "folder": self._folder or str(run.folder.absolute() / "trackio"),
                "project": config.project,
                # trackio finds a run that goes on by its name alone: the folder's makes it the one.
                "name": f"{config.name or run.name} {run.folder.name}",
                "group": config.group,
                "config": dict(run.recipe),
            },
        )


def _environment() -> dict[str, str]:
    """Return the environment without secrets, and without what leads trackio or the hub anywhere.

    trackio asks the hub who the user is, with the user's key, even where it only writes files.
    """
    kept = variables_without_secrets(lambda name: False)
    return {
        name: value
        for name, value in kept.items()
        if name in _KEPT or not name.startswith(("TRACKIO_", "HF_", "HUGGING", "SYSTEM", "SPACE_"))
    }


@hookimpl
def llmft_trackers() -> list[type[Tracker[Any]]]:
    """Return the trackio tracker."""
    return [Trackio]
