"""What users of transformers' TrainingArguments say alike: steps, schedule, saving, evaluation."""

from __future__ import annotations

import json
from collections.abc import Container, Mapping, Sequence
from contextlib import suppress
from pathlib import PurePath
from typing import Any

from llmft.importing.configuration import Key, as_bool
from llmft.importing.peer_translation import Translation
from llmft.recipes.tree import visible


def steps(t: Translation) -> None:
    """Write the number of steps, or of epochs where that is not limited; -1 is no limit."""
    most, key = t.get("max_steps"), t.key("max_steps")
    epochs = t.key("num_train_epochs")
    if isinstance(most, int) and not isinstance(most, bool) and most > 0:
        t.set("train.max_steps", most, key)
        if epochs is not None:
            t.note("none", epochs, "max_steps ends the training", block="train")
        return
    if key is not None and most != -1:
        t.set("train.max_steps", most, key)
    elif key is not None:
        t.note("none", key, "no limit; the number of epochs applies", block="train")
    value(t, "train.num_train_epochs", "num_train_epochs")


def value(t: Translation, home: str, name: str, why: str = "") -> bool:
    """Set a setting to what a key says, or to the peer's default with a comment."""
    found, key = t.get(name), t.key(name)
    if found is None:
        return False
    why = why or ("" if key else f"the default of {t.origin}")
    return t.set(home, number(found), key, why, said=name)


def number(found: Any) -> Any:
    if isinstance(found, str):
        with suppress(ValueError):
            return int(found)
        try:
            return float(found)
        except ValueError:
            return found
    return found


def schedule_kwargs(t: Translation, name: str) -> None:
    """Write the settings of the schedule: a block, or JSON text, which TrainingArguments parses."""
    inner = {n: k.value for n, k in t.configuration.under(name).items()}
    for inside in inner:
        t.taken.add(f"{name}.{inside}")
    key = t.key(f"{name}.{next(iter(inner))}") if inner else t.key(name)
    if key is not None and not inner and isinstance(key.value, str) and key.value.strip():
        with suppress(ValueError, RecursionError):
            inner = json.loads(key.value)
        if not isinstance(inner, dict) or not inner:
            t.note("cannot", key, "settings of a schedule that are no JSON object", block="train")
            return
    if inner:
        t.set("train.lr_scheduler_kwargs", inner, key)


def schedule(
    t: Translation, name: str = "lr_scheduler_type", kwargs: str = "lr_scheduler_kwargs"
) -> None:
    """Write the schedule with its arguments, and the warm-up where the schedule has one."""
    kind = t.get(name)
    value(t, "train.lr_scheduler_type", name)
    schedule_kwargs(t, kwargs)
    ratio, ratio_key = t.get("warmup_ratio"), t.key("warmup_ratio")
    count, count_key = t.get("warmup_steps"), t.key("warmup_steps")
    count, ratio = number(count or 0), number(ratio or 0)
    if kind == "constant":
        for key in (ratio_key, count_key):
            if key is not None and key.value:
                t.note("none", key, "the constant schedule ignores it", block="train")
        return
    if isinstance(count, int | float) and 0 < count < 1:  # transformers 5: a share of the steps
        t.set("train.warmup_ratio", count, count_key, "below 1 it is a share of all steps")
    elif count:
        t.set("train.warmup_steps", int(count) if count == int(count) else count, count_key)
        if ratio_key is not None and ratio:
            t.note("none", ratio_key, "warmup_steps goes before", block="train")
    elif ratio_key is not None and ratio:
        t.set("train.warmup_ratio", ratio, ratio_key)
    elif ratio:
        value(t, "train.warmup_ratio", "warmup_ratio")


def checkpointing(t: Translation, name: str = "gradient_checkpointing") -> None:
    """Write whether activations are computed again, which costs time and changes no number."""
    found, key = t.get(name), t.key(name)
    t.set("train.gradient_checkpointing", bool(found), key, "" if key else unstated(t, name))
    other = t.key("activation_checkpointing")
    if other is not None:
        t.set("train.gradient_checkpointing", bool(other.value), other)
    offloading(t)


def offloading(t: Translation) -> None:
    """Write whether what is kept for the backward pass is in the CPU's memory, as here for layers.

    Where activations are not computed again, other tools move all of them, which is not here.
    """
    key = t.key("activation_offloading")
    if key is None or key.value in (None, False):
        return
    if key.value in _OFFLOADED and t.draft.get("train.gradient_checkpointing") is True:
        t.set("train.activation_offloading", True, key)
    else:
        t.note("speed", key, "where activations are kept until the backward pass")


_OFFLOADED = (True, "legacy", "hidden_states")
"""The ways of Axolotl and TRL that keep them in memory; another keeps them on a disk."""


def unstated(t: Translation, name: str) -> str:
    return f"the default of {t.origin}"


def saving(t: Translation) -> None:
    """Write when checkpoints are saved: nothing that is trained depends on it."""
    strategy, key = t.get("save_strategy"), t.key("save_strategy")
    strategy = "no" if strategy is False else strategy
    every, every_key = number(t.get("save_steps")), t.key("save_steps")
    if strategy == "best":
        t.note(
            "logging", key or "save_strategy", "checkpoints are kept by their score", block="train"
        )
        return
    t.set("train.save_strategy", strategy, key, "" if key else unstated(t, "save_strategy"))
    if strategy == "steps" and every:
        if isinstance(every, float) and every >= 1:
            every = int(every)
        share = isinstance(every, float)
        if share and "Interval" not in annotation("save_steps"):
            t.note(
                "logging",
                every_key or "save_steps",
                "checkpoints at a share of the run",
                block="train",
            )
            t.set("train.save_strategy", "epoch", key, "save_steps below 1 is a share of the run")
        else:
            why = "" if every_key else unstated(t, "save_steps")
            t.set("train.save_steps", every, every_key, why)
    elif every_key is not None:
        t.note("none", every_key, f"checkpoints are saved by '{strategy}'", block="train")
    kept = t.key("save_total_limit")
    if kept is not None and kept.value == 1:
        t.set("train.save_total_limit", 2, kept, "a run here keeps the last two at least")
        t.note("logging", kept, "a run here keeps the last two checkpoints at least", block="train")
    elif kept is not None:
        t.set("train.save_total_limit", kept.value, kept)


def held_out(size: Any) -> int | float:
    """Return how many rows are held out: a share, or from 1 their number; 0 where none are."""
    if isinstance(size, bool) or not isinstance(size, int | float) or size <= 0:
        return 0
    return int(size) if size >= 1 else size


def annotation(name: str) -> str:
    from llmft.api.train_settings import TrainSettings

    field = TrainSettings.model_fields[name].annotation
    return "Interval" if "float" in str(field) else str(field)


def trackers(t: Translation, name: str = "report_to") -> None:
    """Write the trackers; one that is not installed is told."""
    key = t.key(name)
    if key is None:
        return
    asked = key.value if isinstance(key.value, list) else str(key.value).split(",")
    wanted = [str(one).strip() for one in asked if str(one).strip() not in ("", "none", "None")]
    known = t.schema.registry.names("tracker")
    for unknown in [one for one in wanted if one not in known]:
        t.note(
            "logging",
            key,
            f"no tracker is installed that is called '{visible(unknown)[:40]}'",
            missing=f"tracker {visible(unknown)[:40]}",
        )
    use_trackers(t, [one for one in wanted if one in known], key)


def use_trackers(
    t: Translation,
    names: Sequence[str],
    key: Key,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Add trackers beside the terminal's and the file's; settings: those of some, by name."""
    if names:
        of = settings or {}
        methods = dict.fromkeys(["console", "jsonl", *names])
        t.draft.set("trackers", [{"method": name, **of.get(name, {})} for name in methods], key)


def tracker_settings(
    t: Translation, keys: Mapping[str, Mapping[str, str]], wanted: Container[str]
) -> dict[str, dict[str, str]]:
    """Return what keys say of the trackers that are wanted, and tell of those that act not.

    keys: of each tracker, by its setting, the name of the key that holds it as a text.
    """
    found: dict[str, dict[str, str]] = {}
    for tracker, named in keys.items():
        for setting, name in named.items():
            key = t.key(name)
            if key is None or not isinstance(key.value, str) or not key.value:
                continue
            if tracker not in wanted:
                t.note("none", key, f"nothing is reported to {tracker}")
            elif setting != "mode":
                found.setdefault(tracker, {})[setting] = key.value
            elif key.value in ("local", "offline"):
                found.setdefault(tracker, {})[setting] = "offline"
    return found


def noise(t: Translation) -> None:
    """Write NEFTune's noise on embeddings."""
    for name in ("neftune_noise_alpha", "noisy_embedding_alpha"):
        if (key := t.key(name)) is not None and key.value:
            t.set("train.neftune_noise_alpha", number(key.value), key)


def hub(t: Translation) -> None:
    """Write where the result is sent, where the peer sends it."""
    asked, private, id_key = t.key("push_to_hub"), t.key("hub_private_repo"), t.key("hub_model_id")
    if asked is None or asked.value is not True:
        for key in (id_key, private):
            if key is not None:
                t.note("none", key, "nothing is sent to the hub without push_to_hub")
        return
    name = str(id_key.value) if id_key else PurePath(str(t.get("output_dir") or "model")).name
    why = "" if id_key else "no hub_model_id: transformers takes the folder's name"
    t.set("push_to_hub.repo_id", name, id_key or asked, why)
    if private is not None:
        t.set("push_to_hub.private", bool(private.value), private)
    else:
        t.note(
            "logging", asked, "the repository is private here unless push_to_hub.private is false"
        )


def evaluation(
    t: Translation,
    *,
    split: str | None = None,
    holdout: float | None = None,
    key: Key | None = None,
) -> None:
    """Write on which rows and when the stage is scored.

    split, holdout: the rows, as the peer says it. Nothing that is trained depends on it, except
    where the best checkpoint is taken or training stops early.
    """
    strategy = t.get("eval_strategy")
    old = t.key("evaluation_strategy")
    strategy_key = t.key("eval_strategy") or old
    if old is not None:
        strategy = old.value
    strategy = "no" if strategy in (False, None) else str(strategy)
    every, every_key = number(t.get("eval_steps")), t.key("eval_steps")
    do_eval = t.key("do_eval")
    best = bool(t.get("load_best_model_at_end"))
    patience = t.key("early_stopping_patience")
    block = "evaluate"
    if strategy == "no" and not holdout:
        for unused in (every_key, do_eval, strategy_key):
            if unused is not None and unused.value not in (False, "no"):
                t.note("none", unused, "nothing is scored during training without eval_strategy")
        for name in ("load_best_model_at_end", "metric_for_best_model", "greater_is_better"):
            if (found := t.key(name)) is not None and found.value:
                t.note("none", found, "nothing is scored during training without eval_strategy")
        return
    if holdout:
        t.set("evaluate.holdout", holdout, key)
    elif split:
        t.set("evaluate.split", split, key)
    if do_eval is not None:
        t.note("none", do_eval, "follows from eval_strategy", block=block)
    without: Any = "cannot" if best or patience else "logging"
    if strategy != "no":
        t.set("evaluate.eval_strategy", strategy, strategy_key, without=without)
        if strategy == "steps" and every:
            if isinstance(every, float) and every >= 1:
                every = int(every)
            t.set("evaluate.eval_steps", every, every_key, without=without)
        elif every_key is not None:
            t.note("none", every_key, f"evaluation is by '{strategy}'", block=block)
    for name in (
        "load_best_model_at_end",
        "metric_for_best_model",
        "greater_is_better",
        "early_stopping_patience",
    ):
        found = t.key(name)
        if found is None or (found.value in (None, False) and name == "load_best_model_at_end"):
            continue
        said = found.value
        if name == "metric_for_best_model" and isinstance(said, str):
            said = said.removeprefix("eval_")
        t.set(f"evaluate.{name}", said, found, without=without)


def training_arguments(t: Translation) -> None:
    """Translate what every user of TrainingArguments says."""
    steps(t)
    schedule(t)
    value(t, "train.weight_decay", "weight_decay")
    checkpointing(t)
    saving(t)
    noise(t)
    trackers(t)
    hub(t)


def sampling(t: Translation) -> None:
    """Write the order in which an epoch takes the rows, once all else is written."""
    home = "train.train_sampling_strategy"
    key, old = t.key("train_sampling_strategy"), t.key("group_by_length")
    asked = t.get("train_sampling_strategy")
    if old is not None and as_bool(old.value) is True:
        key, asked = old, "group_by_length"
    in_order = t.key("curriculum_sampling") if t.table.peer == "axolotl" else None
    if in_order is not None and as_bool(in_order.value) is True:
        key, asked = in_order, "sequential"
        packed = t.draft.get("train.packing") is True
        if packed or as_bool(t.configuration.get("shuffle_merged_datasets")) is not False:
            what = "rows in one order in all epochs, which is not the file's"
            t.note("cannot", key, what, missing="curriculum_sampling")
            return
    if asked in (None, "random"):
        return
    if t.trainer in ("grpo", "rloo", "ppo", "gkd"):
        if key is not None:
            t.note("none", key, "its trainer takes prompts in an order of its own", block="train")
    elif asked == "sequential":
        t.set(home, asked, key, "" if key else unstated(t, "train_sampling_strategy"))
    elif asked == "batch_rebalance":
        t.note("speed", key, "which rows share a batch", block="train")
    elif asked == "group_by_length" and t.draft.get("train.packing") is True:
        t.note("speed", key, "packed rows are of like length already", block="train")
    elif asked == "group_by_length" and t.draft.get("data.streaming") is True:
        t.note("speed", key, "which of the streamed rows share a batch", block="train")
    else:
        t.set(home, asked, key)


def batch_of_processes(t: Translation) -> None:
    """Let one process take the rows of a step that several took together."""
    if t.processes == 1 or t.trainer in ("grpo", "rloo"):  # whose steps count prompts
        return
    entry = t.draft.entry("train.gradient_accumulation_steps")
    steps = entry.value if entry else 1
    if not isinstance(steps, int):
        return
    why = (
        f"{steps} in each of {t.processes} processes: one process takes all rows of a step here;"
        f" started with {t.processes} processes, write {steps}"
    )
    key = entry.flag if entry else None
    t.draft.set("train.gradient_accumulation_steps", steps * t.processes, key, why)
