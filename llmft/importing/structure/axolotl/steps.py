"""Axolotl's steps: batches, schedule, warm-up, and when it saves and scores."""

from __future__ import annotations

from typing import Any

from llmft.importing.peer_translation import Translation
from llmft.importing.structure import arguments

_MEANS = (
    "a step's loss is the mean over its tokens; Axolotl 0.19 takes the mean of its passes' means,"
    " where a model's forward does not name num_items_in_batch"
)


def batches(t: Translation) -> None:
    """Write steps, and how many forward passes one takes."""
    most, key = t.get("max_steps"), t.key("max_steps")
    if isinstance(most, int) and most > 0:
        t.set("train.max_steps", most, key)
        if (epochs := t.key("num_epochs")) is not None:
            t.note("none", epochs, "max_steps ends the training", block="train")
        elif t.configuration.keys.get("num_epochs") is None:
            t.taken.add("num_epochs")
    else:
        arguments.value(t, "train.num_train_epochs", "num_epochs")
    total, per_pass = t.key("batch_size"), t.get("micro_batch_size")
    if total is not None and not t.stated("gradient_accumulation_steps"):
        if isinstance(total.value, int) and isinstance(per_pass, int) and per_pass > 0:
            steps = max(1, total.value // per_pass)
            t.set("train.gradient_accumulation_steps", steps, total, _MEANS if steps > 1 else "")
    else:
        several = (arguments.number(t.get("gradient_accumulation_steps")) or 1) != 1
        why = _MEANS if several else ""
        arguments.value(t, "train.gradient_accumulation_steps", "gradient_accumulation_steps", why)
        if total is not None:
            t.note("none", total, "gradient_accumulation_steps goes before", block="train")
    if not t.stated("eval_batch_size") and isinstance(per_pass, int):
        t.set(
            "train.per_device_eval_batch_size",
            per_pass,
            None,
            "eval_batch_size is micro_batch_size",
        )


_SCHEDULES = ("cosine", "linear", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt")


def schedule(t: Translation) -> None:
    """Write the schedule; Axolotl rounds a warm-up by share down to whole steps."""
    kind = str(t.get("lr_scheduler"))
    least = t.key("cosine_min_lr_ratio")
    constant = t.key("cosine_constant_lr_ratio")
    if least is not None and least.value and kind == "cosine":
        if constant is not None and constant.value:
            t.note(
                "cannot",
                constant,
                "a schedule with a constant end",
                missing="cosine_constant_lr_ratio",
            )
        else:
            t.set("train.lr_scheduler_type", "cosine_with_min_lr", least)
            t.set("train.lr_scheduler_kwargs", {"min_lr_rate": least.value}, least)
    else:
        for unused in (least, constant):
            if unused is not None:
                t.note(
                    "none", unused, "it acts with cosine_min_lr_ratio above 0 only", block="train"
                )
        arguments.value(t, "train.lr_scheduler_type", "lr_scheduler")
        arguments.schedule_kwargs(t, "lr_scheduler_kwargs")
    count, ratio = t.key("warmup_steps"), t.key("warmup_ratio")
    if kind == "constant":
        for unused in (count, ratio):
            if unused is not None and unused.value:
                t.note("none", unused, "the constant schedule ignores it", block="train")
        return
    steps = t.draft.get("train.max_steps")
    if count is not None:
        if isinstance(count.value, float) and 0 < count.value < 1:
            t.set("train.warmup_ratio", count.value, count, "below 1 it is a share of all steps")
        elif count.value:
            t.set("train.warmup_steps", _not_one(count.value), count, _ONE * (count.value == 1))
        if ratio is not None:
            t.note("none", ratio, "warmup_steps goes before", block="train")
    elif ratio is not None and ratio.value:
        if isinstance(steps, int):
            whole = _not_one(int(ratio.value * steps))
            t.set("train.warmup_steps", whole, ratio, "Axolotl rounds down to whole steps")
        else:
            t.set("train.warmup_ratio", ratio.value, ratio)
            t.set("train.warmup_rounding", "axolotl", ratio, "it rounds down to whole steps")
    elif ratio is None:
        why = f"the default of {t.origin}, at most 100 steps"
        if isinstance(steps, int):
            t.set("train.warmup_steps", _not_one(min(int(0.03 * steps), 100)), None, why)
        else:
            t.set("train.warmup_ratio", 0.03, None, why)
            t.set("train.warmup_max_steps", 100, None, why)
            t.set("train.warmup_rounding", "axolotl", None, "it rounds down to whole steps")


_ONE = "Axolotl makes 1 step 2"


def _not_one(steps: int) -> int:
    return 2 if steps == 1 else steps


def _share(t: Translation, name: str) -> float | None:
    """Return so many times an epoch as a share of the run; None where that is every step."""
    key = t.key(name)
    epochs = t.get("num_epochs")
    if key is None or not isinstance(key.value, int) or not isinstance(epochs, int | float):
        return None
    share = 1.0 / (key.value * epochs) if key.value and epochs else 0.0
    return round(share, 6) if 0 < share < 1 else None


def saving(t: Translation) -> None:
    """Write when checkpoints are saved: nothing that is trained depends on it."""
    every, times, strategy = t.key("save_steps"), t.key("saves_per_epoch"), t.key("save_strategy")
    block = "train"
    if times is not None and times.value:
        if times.value == 1:
            t.set("train.save_strategy", "epoch", times)
        elif (share := _share(t, "saves_per_epoch")) and "Interval" in arguments.annotation(
            "save_steps"
        ):
            t.set("train.save_strategy", "steps", times)
            t.set("train.save_steps", share, times, "as a share of the run")
        else:
            t.set("train.save_strategy", "epoch", times)
            t.note("logging", times, "checkpoints at the end of each epoch only", block=block)
    elif every is not None and every.value:
        share = isinstance(every.value, float) and every.value < 1
        if share and "Interval" not in arguments.annotation("save_steps"):
            t.set("train.save_strategy", "epoch", every)
            t.note("logging", every, "checkpoints at a share of the run", block=block)
        else:
            t.set("train.save_strategy", "steps", every)
            t.set("train.save_steps", every.value, every)
        if strategy is not None and strategy.value != "steps":
            t.note("none", strategy, "save_steps goes before", block=block)
    elif strategy is not None and strategy.value in ("no", "epoch", "steps", False):
        t.set("train.save_strategy", "no" if strategy.value is False else strategy.value, strategy)
    else:
        if strategy is not None:
            t.note("logging", strategy, "checkpoints are kept by their score", block=block)
        t.set("train.save_strategy", "epoch", None, f"the default of {t.origin}")
    kept = t.key("save_total_limit")
    if kept is not None and isinstance(kept.value, int):
        t.set("train.save_total_limit", max(2, kept.value), kept)
    if (sent := t.key("hub_model_id")) is not None:
        t.set("push_to_hub.repo_id", str(sent.value), sent)


def evaluation(t: Translation) -> None:
    """Write which rows are held out, and when they are scored."""
    held, key = t.get("val_set_size"), t.key("val_set_size")
    tests = t.configuration.items("test_datasets")
    for block in tests:
        for inner in t.configuration.under(block):
            t.taken.add(f"{block}.{inner}")
    times, every = t.key("evals_per_epoch"), t.key("eval_steps")
    strategy = t.key("eval_strategy") or t.key("evaluation_strategy")
    best, patience = bool(t.get("load_best_model_at_end")), t.key("early_stopping_patience")
    metric, greater = t.key("metric_for_best_model"), t.key("greater_is_better")
    best_key = t.key("load_best_model_at_end")
    held = arguments.held_out(held)
    if tests:
        t.note(
            "cannot" if best or patience else "logging",
            t.configuration.keys.get(f"{tests[0]}.path"),
            "another data set is scored on",
            missing="evaluation on another data set",
        )
    if held > 0:
        t.set("evaluate.holdout", held, key)
    if held == 0 or tests:
        for unused in (times, every, strategy, metric, greater, best_key):
            if unused is not None and unused.value not in (0, False, "no", ""):
                t.note(
                    "none" if not tests else "logging", unused, "no rows are held out here to score"
                )
        if patience is not None and not tests:
            t.note("decide", patience, "no rows are held out to score", missing="early stopping")
        return
    without: Any = "cannot" if best or patience else "logging"
    if times is not None and times.value:
        share = _share(t, "evals_per_epoch")
        if times.value == 1:
            t.set("evaluate.eval_strategy", "epoch", times, without=without)
        elif share:
            t.set("evaluate.eval_strategy", "steps", times, without=without)
            t.set("evaluate.eval_steps", share, times, "as a share of the run", without=without)
    elif every is not None and every.value:
        t.set("evaluate.eval_strategy", "steps", every, without=without)
        t.set("evaluate.eval_steps", every.value, every, without=without)
    elif strategy is not None and strategy.value not in (False, "no"):
        t.set("evaluate.eval_strategy", strategy.value, strategy, without=without)
    for home, found in (
        ("load_best_model_at_end", best_key if best else None),
        ("early_stopping_patience", patience),
        ("metric_for_best_model", metric),
        ("greater_is_better", greater),
    ):
        if found is not None:
            said = found.value
            if isinstance(said, str):
                said = said.removeprefix("eval_")
            t.set(f"evaluate.{home}", said, found, without=without)
    if patience is not None and not best:
        t.set(
            "evaluate.load_best_model_at_end",
            True,
            patience,
            "Axolotl takes the best checkpoint where it stops early",
            without=without,
        )


def watchdog(t: Translation) -> None:
    """Write the watch over the loss: Axolotl ends the training, and keeps what it has."""
    threshold, patience = t.key("loss_watchdog_threshold"), t.key("loss_watchdog_patience")
    if threshold is None:
        if patience is not None:
            t.note("none", patience, "acts with loss_watchdog_threshold only", block="train")
        return
    if "loss_watchdog" not in t.schema.registry.names("callback"):
        t.note("logging", threshold, "a run whose loss stays high is stopped there")
        return
    watch = {"method": "loss_watchdog", "threshold": arguments.number(threshold.value)}
    watch |= {"patience": patience.value} if patience is not None else {}
    t.draft.set("stage.plugins", [{**watch, "on_spike": "end"}], threshold)
