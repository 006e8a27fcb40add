"""Tracker `swanlab`: the run as SwanLab shows it, and files to send later where it cannot.

SwanLab runs in a process of its own: see `writer.py`, and `llmft_trackers/reporter.py`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import model_validator

from llmft.api import Field, Line, RecipeError, RunInfo, Tracker, TrackerConfig, hookimpl
from llmft_trackers.address import host
from llmft_trackers.process import TrackerProcess, variables_without_secrets
from llmft_trackers.reporter import Reporter, require
from llmft_trackers.swanlab.server import api_host

_PROJECT = re.compile(r"[0-9a-zA-Z_\-+.]{1,100}")
_WORKSPACE = re.compile(r"[0-9a-zA-Z_\-]{1,25}")
_KEPT = ("SWANLAB_API_KEY", "SWANLAB_ROOT", "SWANLAB_SAVE_DIR")


class SwanLab(Reporter):
    """Report to SwanLab; if it cannot be reached, keep files to send later.

    Only the user's own login is used (`swanlab login`, SWANLAB_API_KEY), with no prompt.
    """

    method = "swanlab"

    class Config(TrackerConfig):
        """Settings of the swanlab tracker, by SwanLab's names."""

        method: Literal["swanlab"] = Field("swanlab", description="report to SwanLab")
        project: Line | None = Field(
            None, description="the project; default: SWANLAB_PROJ_NAME, else 'llmft'"
        )
        workspace: Line | None = Field(
            None, description="the workspace; default: that of the key that is used"
        )
        experiment_name: Line | None = Field(
            None, description="the run's name there; default: its name and its folder's"
        )
        group: Line | None = Field(None, description="the group that the run belongs to")
        tags: list[Line] = Field(default_factory=list, max_length=30, description="the run's tags")
        mode: Literal["auto", "offline"] = Field(
            "auto", description="auto: online if the server takes the key, else offline; offline:"
            " files only",
        )  # fmt: skip

        @model_validator(mode="after")
        def _installed(self) -> SwanLab.Config:
            require("swanlab", "'llmft[swanlab]'")
            return self

        @model_validator(mode="after")
        def _accepted_by_swanlab(self) -> SwanLab.Config:
            for key, value, shape in (
                ("project", self.project, _PROJECT), ("workspace", self.workspace, _WORKSPACE),
            ):  # fmt: skip
                if value and not shape.fullmatch(value):
                    most, more = ("100", ", '_', '-', '+' and '.'") if key == "project" else (
                        "25", ", '_' and '-'")  # fmt: skip
                    what = f"SwanLab takes no {key} called '{value}'"
                    fix = f"write {most} characters at most: letters, digits{more}"
                    raise RecipeError("E028", what, fix=fix)
            return self

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._server = api_host()  # resolved once: shown and told are the same
        self._offline = config.mode == "offline" or _mode() == "offline"
        self.contacts = "" if self._offline or _mode() == "disabled" else host(self._server)

    def begin(self, run: RunInfo) -> tuple[TrackerProcess, Mapping[str, Any]] | None:
        """Return the process that tells SwanLab, and which run it is."""
        if _mode() == "disabled":
            return None
        config = self.config
        named = os.environ.get("SWANLAB_PROJ_NAME")
        with_key = not self._offline
        process = TrackerProcess("swanlab", "llmft_trackers.swanlab.writer", _environment(with_key))
        return process, {
            "folder": str(run.folder.absolute() / "swanlab"),
            "server": self._server,
            "offline": self._offline,
            "id": re.sub(r"[^a-z0-9]", "-", run.folder.name.lower())[:64],
            "project": config.project or named or "llmft",
            "workspace": config.workspace,
            "name": config.experiment_name or f"{run.name} {run.folder.name}",
            "group": config.group,
            "tags": list(config.tags),
            "config": dict(run.recipe),
        }


def _mode() -> str:
    """Return SWANLAB_MODE where it keeps from sending; '' where it does not."""
    said = os.environ.get("SWANLAB_MODE", "")
    return {"local": "offline"}.get(said, said) if said in ("disabled", "offline", "local") else ""


def _environment(with_key: bool) -> dict[str, str]:
    """Return the environment with SwanLab's login, and nothing else of its settings."""
    kept = variables_without_secrets(lambda name: name == "SWANLAB_API_KEY")
    if not with_key:
        kept.pop("SWANLAB_API_KEY", None)
    return {
        name: value
        for name, value in kept.items()
        if name in _KEPT or not name.startswith(("SWANLAB_", "SWANHUB_"))
    }


@hookimpl
def llmft_trackers() -> list[type[Tracker[Any]]]:
    """Return the swanlab tracker."""
    return [SwanLab]
