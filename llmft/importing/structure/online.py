"""Methods that learn from sampled answers: what a step is, where other tools count answers."""

from __future__ import annotations

from typing import Any

from llmft.importing.configuration import Key
from llmft.importing.peer_translation import Translation
from llmft.importing.structure import arguments

METHODS = ("grpo", "rloo")
_BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps",
          "steps_per_generation", "generation_batch_size")  # fmt: skip
_COUNTED = ("train.max_steps", "train.warmup_steps", "train.logging_steps", "train.save_steps",
            "evaluate.eval_steps")  # fmt: skip


def sampling(t: Translation, generations: int, accumulation: int) -> int:
    """Write how many prompts a step has, and how many updates; return the prompts, 0 if unknown.

    TRL 1.16 and ms-swift 4.6: a forward pass has `per_device_train_batch_size` answers in each
    process, `steps_per_generation` of them are sampled together, and an update takes
    `gradient_accumulation_steps` of them. Here a step is what is sampled together, in prompts.

    generations: answers to a prompt. accumulation: the peer's default of passes in an update.
    """
    size, rows = t.key("generation_batch_size"), t.get(_BATCH[0])
    taken, spread = t.key("gradient_accumulation_steps"), t.key("steps_per_generation")
    t.taken.update(_BATCH)
    in_update = taken.value if taken else accumulation
    together: Any = spread.value if spread else in_update
    numbers = [rows, in_update, together, size.value if size else 1, generations]
    if not all(isinstance(one, int) and not isinstance(one, bool) and one > 0 for one in numbers):
        _refused(t, taken or spread or size, "the numbers of a step are no whole numbers above 0")
        return 0
    at_once = rows * t.processes
    if size is not None and spread is None:
        together = size.value / at_once
    answers = round(at_once * together)
    if together != int(together) or answers % generations:
        what = f"{answers} answers are no whole number of groups of {generations}"
        _refused(t, size or spread or taken, f"{what}; {t.table.title} refuses it too")
        return 0
    if together % in_update:
        _refused(t, spread or size or taken, "an update takes answers of two samplings")
        return 0
    prompts: int = answers // generations
    updates = int(together // in_update)
    fitting = next(n for n in range(min(rows, prompts), 0, -1) if prompts % n == 0)
    why = f"{t.table.title} takes {rows} answers at a time; here a step is counted in prompts"
    t.draft.set("train.per_device_train_batch_size", fitting, t.key(_BATCH[0]), why)
    why = f"{prompts} prompts a step: {answers} answers of {t.processes} processes together there"
    t.draft.set("train.gradient_accumulation_steps", prompts // fitting, taken, why)
    for key in (spread, size):
        if key is not None and updates == 1:
            t.note("none", key, "all that is sampled together is one update", block="alignment")
    if updates > 1:
        why = f"{updates} updates of what is sampled together"
        t.set("alignment.steps_per_generation", updates, spread or size, why)
        if prompts % updates:
            _refused(t, spread or size, "an update has parts of groups; here groups stay whole")
    return prompts


def _refused(t: Translation, key: Key | None, what: str) -> None:
    t.note("cannot", key or _BATCH[0], what, block="train", missing="the answers of a step")


def updates_of(t: Translation) -> int:
    """Return how many updates learn from what is sampled together."""
    found = 1
    for name in ("steps_per_generation", "num_iterations"):
        value = t.draft.get(f"alignment.{name}")
        if isinstance(value, int) and value > 0:
            found *= int(value)
    return found


def counts(t: Translation) -> None:
    """Count in steps what the peer counts in updates, where a step has several; called last."""
    updates = updates_of(t)
    if updates == 1:
        return
    for home in _COUNTED:
        entry = t.draft.entry(home)
        if entry is None or not isinstance(entry.value, int | float) or 0 < entry.value < 1:
            continue
        number = max(1, round(entry.value / updates)) if entry.value else entry.value
        why = f"{entry.why}; " if entry.why else ""
        why += f"{entry.value:g} updates there, {updates} in a step"
        key = entry.flag if isinstance(entry.flag, Key) else None
        t.draft.set(home, number, key, why)
        if home in _COUNTED[:2] and number * updates != entry.value:
            what = f"{entry.value:g} updates are no whole number of steps of {updates}"
            t.note("decide", key or home, what, block="train", missing="updates within a step")


def whole_steps(t: Translation, prompts: int) -> None:
    """Leave out the last prompts of an epoch, which fill no step, as the peer's sampler does."""
    if prompts > 1:
        t.set("train.drop_last", True, None, f"as {t.table.title} leaves out what fills no step")


def has_dropout(t: Translation) -> bool:
    """Return whether the adapter has a dropout; the models that are known here have none."""
    share = t.draft.get("adapter.lora_dropout")
    return isinstance(share, int | float) and share > 0


def weights(t: Translation, blocks: list[dict[str, Any]], key: Key | None) -> list[dict[str, Any]]:
    """Return the blocks of rewards, each with its weight."""
    if key is None:
        return blocks
    listed = key.value if isinstance(key.value, list) else [key.value]
    if len(listed) != len(blocks):
        what = f"{len(listed)} weights of {len(blocks)} rewards; {t.table.title} refuses it too"
        t.note("cannot", key, what, missing="a weight of each reward")
        return blocks
    return [
        {**block, "weight": arguments.number(weight)}
        for block, weight in zip(blocks, listed, strict=True)
    ]


def unlimited(t: Translation) -> None:
    """Let rewards with a limit on each answer have a day for a step's: the peer has no limit."""
    why = f"as in {t.origin}, each answer has a limit of its own"
    t.set("alignment.reward_timeout_seconds", 86_400, None, why)
