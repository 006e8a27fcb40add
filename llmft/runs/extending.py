"""Whether a finished stage that is asked to train longer can go on from its end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmft.api import Callback, Schedule
from llmft.recipes.recipe import Stage
from llmft.runs import artifacts
from llmft.runs.edits import Edit
from llmft.runs.fingerprint import free_place
from llmft.system import fsio
from llmft.training.checkpoints import FOLDER as CHECKPOINTS

_LENGTH = ("num_train_epochs", "max_steps")


def before_it_was_longer(stage: Stage, edits: Sequence[Edit]) -> Stage | None:
    """Return a stage as it was, where it differs only in how long it trains; else None."""
    own = [edit for edit in edits if edit.stage == stage.name and edit.kind != "allowed"]
    lengths = {edit.key[-1]: edit.before for edit in own if edit.key[-1] in _LENGTH}
    if not own or len(lengths) < len(own):
        return None
    return stage.model_copy(update={"train": stage.train.model_copy(update=lengths)})


def why_not_extended(
    before: Stage,
    after: Stage,
    schedule: Schedule[Any],
    folder: Path,
    steps: int,
    callbacks: Sequence[Callback[Any]] = (),
) -> str:
    """Return why a stage cannot go on from its end to train longer; '' where it can.

    schedule: that of its learning rate. callbacks: what acts after its steps. folder: the finished
    stage's. steps: how many it has taken.
    """
    then, now = before.train, after.train
    if then.max_steps is not None and now.max_steps is None:
        return "max_steps was removed, so its end may come sooner or later than before"
    if now.max_steps is not None and now.max_steps < steps:
        return f"it has taken {steps} steps, and is to take {now.max_steps}"
    if now.max_steps is None and now.num_train_epochs < then.num_train_epochs:
        return f"it has taken {then.num_train_epochs:g} epochs, and is to take fewer"
    if schedule.depends_on_steps or schedule.follows_scores:
        return (
            f"lr_scheduler_type: {schedule.config.method} spreads the learning rate over all steps,"
            " so those that it has taken would have had other rates (constant_with_warmup would"
            " go on)"
        )
    for one in callbacks:
        if one.depends_on_steps:
            name = one.config.method
            return f"what the plugin '{name}' does at a step depends on how many there are"
    if now.warmup_ratio:
        return (
            "warmup_ratio is a share of all steps, so those that it has taken would have had other"
            " learning rates (warmup_steps would go on)"
        )
    if not (folder / CHECKPOINTS / f"step-{steps}").is_dir():
        return "no checkpoint of its end was saved (train.save_strategy: epoch would save one)"
    return ""


def set_result_aside(run: Path, stage: str) -> Path:
    """Move what a finished stage made out of the way, its checkpoints apart; return where it is."""
    place, own = free_place(run, stage), run / "stages" / stage
    with fsio.disk_errors(place):
        place.mkdir(parents=True)
        # The result goes first: without it the stage is one that stopped at its checkpoint.
        for name in (artifacts.RESULT, artifacts.ADAPTER, "samples.jsonl"):
            if (own / name).exists():
                (own / name).rename(place / name)
                fsio.sync_folder(own)
        fsio.sync_folder(place)
    return place
