"""The methods that a stage's `train` chooses: by the name of a builtin one, or as a block."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from llmft.api import Optimizer, Schedule
from llmft.api.errors import PluginError
from llmft.api.kinds import Kind
from llmft.recipes.asking import asked, clash
from llmft.recipes.methods import OF_TRAINING, Blocks
from llmft.recipes.tree import KeyPath, visible
from llmft.registry.return_checks import refusals_of

if TYPE_CHECKING:
    from llmft.api.train_settings import TrainSettings
    from llmft.recipes.recipe import Stage

_KEYS = {kind: key for key, kind in OF_TRAINING.items()}


def named_method(kind: Kind, train: TrainSettings) -> str:
    """Return the name of the method of a kind that training settings choose."""
    value: Any = getattr(train, _KEYS[kind])
    return value if isinstance(value, str) else str(value.method)


def config_of(kind: Kind, train: TrainSettings, cls: type[Any]) -> Any:
    """Return the settings of that method: its block, or TrainingArguments' keys beside its name."""
    value: Any = getattr(train, _KEYS[kind])
    if not isinstance(value, str):
        return value
    beside = train.lr_scheduler_kwargs.given() if kind == "schedule" else {}
    return cls.Config.model_validate({"method": value, **beside})


def check_training(base: KeyPath, stage: Stage, blocks: Blocks) -> None:
    """What the methods of training say about each other's settings, and about the evaluation."""
    if stage.alignment is None:
        return
    for key, kind in OF_TRAINING.items():
        path: KeyPath = (*base, "train", key)
        made = _made(kind, path, stage.train, blocks)
        if made is None:
            continue
        refusals = asked(blocks, path, lambda made=made: refusals_of(made, stage.train))
        for inner, what, fix in refusals or ():
            clash(blocks, "E040", [(*base, "train", *inner)], what, fix)
        if isinstance(made, Optimizer) and made.package and find_spec(made.package) is None:
            # Looked for, not imported: importing it may take seconds.
            what = f"optim {visible(made.config.method)[:80]} needs the package {made.package},"
            what += " which is not installed"
            clash(blocks, "E206", [path], what, f"pip install {made.package}")
        if isinstance(made, Schedule):
            _check_schedule(base, stage, made, blocks)


def check_callbacks(base: KeyPath, stage: Stage, blocks: Blocks) -> None:
    """What callbacks say about the settings of training, and what they need beside them."""
    if stage.alignment is None:
        return
    giving: list[KeyPath] = []
    for number, config in enumerate(stage.plugins):
        path: KeyPath = (*base, "plugins", number)
        cls = blocks.classes.get(path)
        if cls is None:
            continue
        made = asked(blocks, path, lambda cls=cls, config=config: cls(config))
        if made is None:
            continue
        refusals = asked(blocks, path, lambda made=made: refusals_of(made, stage.train))
        for inner, what, fix in refusals or ():
            clash(blocks, "E040", [(*path, *inner)], what, fix)
        name = visible(config.method)[:80]
        if cls.follows_scores and (stage.evaluate is None or stage.evaluate.eval_strategy == "no"):
            what = f"'{name}' follows the scores of held-out rows, and none are made in training"
            clash(blocks, "E040", [path], what, "write evaluate: {eval_strategy: epoch}")
        giving += [path] if cls.gives_weights else []
    if len(giving) > 1:
        what = "each of these gives the weights that are used in place of the trained ones"
        clash(blocks, "E040", giving, what, "keep one of them")


def _made(kind: Kind, path: KeyPath, train: TrainSettings, blocks: Blocks) -> Any:
    """Return a method of training, or None where a fault is noted that stands in its way."""
    if blocks.tree.is_broken(path):
        return None
    if path not in blocks.classes:
        if not isinstance(getattr(train, _KEYS[kind]), str):
            return None  # its block is faulty
        try:
            blocks.classes[path] = blocks.registry.method(kind, named_method(kind, train))
        except PluginError as error:
            blocks.tree.adopt(error.faults, path)
            return None
    cls = blocks.classes[path]
    return asked(blocks, path, lambda: cls(config_of(kind, train, cls)))


def _check_schedule(base: KeyPath, stage: Stage, schedule: Schedule[Any], blocks: Blocks) -> None:
    name, path = visible(schedule.method)[:80], (*base, "train", "lr_scheduler_type")
    for key in ("warmup_steps", "warmup_ratio"):
        if getattr(stage.train, key) and not schedule.supports_warmup:
            what = f"the '{name}' schedule has no warm-up"
            clash(blocks, "E040", [(*base, "train", key), path], what, f"drop {key}")
    settings = stage.evaluate
    scored = (
        settings
        and settings.eval_strategy != "no"
        and (settings.best_metric or "loss" in settings.metrics)
    )
    if schedule.follows_scores and not scored:
        what = f"'{name}' follows the loss, or metric_for_best_model, during training, and neither"
        what += " is scored there"
        fix = "write evaluate: {metrics: [loss], eval_strategy: epoch}"
        clash(blocks, "E040", [path], what, fix)
