"""Tracker `wandb`: the run as Weights & Biases shows it, and files to send later where it cannot.

wandb itself runs in a process of its own. A run never waits for it, nothing it does can touch the
training, and what hangs can be ended. See `process.py` and `writer.py`, its two ends.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Literal

from pydantic import model_validator

from llmft.api import (
    EnvironmentFault,
    Field,
    Line,
    Progress,
    RecipeError,
    RunInfo,
    StageInfo,
    Tracker,
    TrackerConfig,
    hookimpl,
)
from llmft.toolkit import escaped, terminal_width, wrapped
from llmft_trackers.conversation import as_text, side_by_side
from llmft_trackers.steps import StageSteps
from llmft_trackers.wandb.process import WandbProcess
from llmft_trackers.wandb.server import base_url, host

log = logging.getLogger("llmft")
_NOT_IN_A_PROJECT = "/\\#?%:"
_MOST_NOTES, _LONGEST_NOTE = 200, 500
_WHEN = ("before", "after")


class Wandb(Tracker[Any]):
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
            if find_spec("wandb") is None:  # looked for, not imported: that takes a second
                what = "this tracker needs the package wandb, which is not installed"
                raise EnvironmentFault("E206", what, fix="pip install wandb")
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
        self._notes: list[str] = []
        self._out = sys.stdout  # the engine sends what is printed later to the log
        self._process: WandbProcess | None = None
        self._steps = StageSteps()

    def run_started(self, run: RunInfo) -> None:
        """Start the process that tells wandb, and go on at once."""
        if os.environ.get("WANDB_MODE") == "disabled":
            return
        config, folder = self.config, run.folder
        (folder / "wandb").mkdir(exist_ok=True)
        self._process = WandbProcess(with_key=config.mode != "offline")
        self._tell(
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
            }
        )

    def stage_started(self, stage: StageInfo) -> None:
        """Tell what the stage trains, on what."""
        self._steps.started(stage)
        counts = {"trainable_parameters", "total_parameters", "rows", "tokens", "trained_tokens"}
        told = {f"{stage.name}/{name}": getattr(stage, name) for name in sorted(counts)}
        self._tell({"config": told})
        self._say_remarks()

    def progress(self, progress: Progress) -> None:
        """Tell the metrics of a logged step, on the stage's own axis of steps."""
        self._steps.progressed(progress)
        if not progress.logged:
            return
        phase = "" if progress.phase == "train" else f"{progress.phase}/"
        self._log(progress.stage, phase, progress.metrics)

    def scored(self, stage: str, when: str, metrics: Mapping[str, float]) -> None:
        """Tell the scores, as `<stage>/before/<metric>` and `<stage>/after/<metric>`."""
        self._steps.scored(stage, when)
        self._log(stage, f"{when}/", metrics)
        self._say_remarks()

    def note(self, text: str) -> None:
        """Tell a remark, in the run's summary under `notes`."""
        if len(self._notes) < _MOST_NOTES:
            self._notes.append(text[:_LONGEST_NOTE])
            self._tell({"summary": {"notes": "\n".join(self._notes)}})

    def stage_finished(self, stage: str, result: Mapping[str, Any]) -> None:
        """Tell the numbers that describe the stage."""
        if self.config.log_completions and (samples := result.get("samples")):
            self._tell({"table": f"{stage}/completions", **_table(samples)})
        numbers = dict(result.get("metrics", {}))
        self._tell({"summary": {f"{stage}/{name}": value for name, value in numbers.items()}})
        self._say_remarks()

    def run_finished(self, summary: Mapping[str, Any]) -> None:
        """Wait until wandb has everything, at most ten seconds; what is left stays in files."""
        done = summary.get("status", "done") == "done" and "error" not in summary
        if self._process is not None:
            self._tell({"exit_code": 0 if done else 1})
            self._process.close()
            self._say_remarks()
        self._process = None

    def _log(self, stage: str, prefix: str, metrics: Mapping[str, float]) -> None:
        if metrics:
            told: dict[str, float] = {f"{stage}/{prefix}{n}": value for n, value in metrics.items()}
            self._tell({"log": {f"{stage}/step": self._steps.of(stage), **told}})

    def _tell(self, message: Mapping[str, Any]) -> None:
        if self._process is not None:
            self._process.tell(message)

    def _say_remarks(self) -> None:
        for remark in self._process.remarks() if self._process else ():
            log.info(remark)
            lines = wrapped(escaped(f"note: {remark}"), terminal_width(self._out))
            self._out.write("\n".join(lines) + "\n")
            self._out.flush()


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
