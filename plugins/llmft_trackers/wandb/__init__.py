"""Tracker `wandb`: the run as Weights & Biases shows it, and files to send later where it cannot.

wandb itself runs in a process of its own. A run never waits for it, nothing it does can touch the
training, and what hangs can be ended. See `process.py` and `writer.py`, its two ends.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import model_validator

from llmft.api import Field, Line, RecipeError, RunInfo, Tracker, TrackerConfig, hookimpl
from llmft_trackers.address import host
from llmft_trackers.conversation import as_text, side_by_side
from llmft_trackers.reporter import Reporter, require
from llmft_trackers.wandb.process import WandbProcess
from llmft_trackers.wandb.server import base_url

_NOT_IN_A_PROJECT = "/\\#?%:"
_WHEN = ("before", "after")


class Wandb(Reporter):
    """Report to Weights & Biases; if it cannot be reached, keep files to upload later.

    Only the user's own login is used (`wandb login`, WANDB_API_KEY), and there is never a prompt.
    """

    method = "wandb"

    class Config(TrackerConfig):
        """Settings of the wandb tracker, by wandb's names."""

        method: Literal["wandb"] = Field("wandb", description="report to Weights & Biases")
        project: Line | None = Field(
            None, description="the project; default: WANDB_PROJECT, else 'llmft'"
        )
        entity: Line | None = Field(
            None, description="the user or team; default: that of the key that is used"
        )
        name: Line | None = Field(
            None, description="the run's name there; default: its name and its folder's"
        )
        group: Line | None = Field(None, description="the group that the run belongs to")
        tags: list[Line] = Field(default_factory=list, max_length=50, description="the run's tags")
        mode: Literal["auto", "online", "offline"] = Field(
            "auto",
            description="auto: online if the server answers within seconds, else offline;"
            " online: without asking first; offline: files only",
        )

        log_completions: bool = Field(
            False, description="also log the prompts and answers of the evaluation, as a table"
        )

        @model_validator(mode="after")
        def _installed(self) -> Wandb.Config:
            require("wandb", "wandb")
            return self

        @model_validator(mode="after")
        def _accepted_by_wandb(self) -> Wandb.Config:
            project = self.project or ""
            team, slash, rest = project.partition("/")
            odd = next((sign for sign in project if sign in _NOT_IN_A_PROJECT), "")
            if odd or len(project) > 128:
                why = f"holds '{odd}'" if odd else "is longer than 128 characters"
                fix = f"write entity: {team}, project: {rest}" if slash else "write another name"
                what = f"wandb takes no project whose name {why}"
                raise RecipeError("E028", what, fix=fix)
            return self

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._server = base_url()  # resolved once: shown, asked and told are the same
        self.contacts = _contacts(config.mode, self._server)

    def begin(self, run: RunInfo) -> tuple[WandbProcess, Mapping[str, Any]] | None:
        """Return the process that tells wandb, and which run it is."""
        if os.environ.get("WANDB_MODE") == "disabled":
            return None
        config, folder = self.config, run.folder
        (folder / "wandb").mkdir(exist_ok=True)
        return (
            WandbProcess(with_key=config.mode != "offline"),
            {
                "folder": str(folder.absolute()),
                "base_url": self._server,
                "mode": config.mode,
                "id": re.sub(r"[^A-Za-z0-9_-]", "-", folder.name)[:64],
                "project": config.project or os.environ.get("WANDB_PROJECT") or "llmft",
                "entity": config.entity,
                "name": config.name or f"{run.name} {folder.name}",
                "group": config.group,
                "tags": list(config.tags),
                "config": dict(run.recipe),
                "stages": list(run.stages),
            },
        )

    def stage_finished(self, stage: str, result: Mapping[str, Any]) -> None:
        """Tell the numbers that describe the stage, and the answers where they are asked for."""
        if self.config.log_completions and (samples := result.get("samples")):
            self._tell({"table": f"{stage}/completions", **_table(samples)})
        super().stage_finished(stage, result)


def _table(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the columns and rows of a table with the answers to a prompt side by side."""
    rows = [
        [as_text(prompt), *(str(taken.get(when, {}).get("answer", "")) for when in _WHEN)]
        for prompt, taken in side_by_side(samples)
    ]
    return {"columns": ["prompt", *_WHEN], "rows": rows}


def _contacts(mode: str, server: str) -> str:
    """Return the host that would be told, or '' where only files are kept."""
    if mode == "offline" or os.environ.get("WANDB_MODE") in ("disabled", "offline", "dryrun"):
        return ""
    return host(server)


@hookimpl
def llmft_trackers() -> list[type[Tracker[Any]]]:
    """Return the wandb tracker."""
    return [Wandb]
