"""What a resumed run does with each setting that was edited since it began."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from llmft.recipes.recipe import Recipe

Kind = Literal["allowed", "applied", "refused"]

# allowed: what is trained stays the same to the bit. applied: training goes on with the new value,
# and a note says so. refused: what was trained so far would not belong to the new recipe.
EDITS: Mapping[str, Kind] = {
    "recipe": "refused",
    "name": "refused",
    "seed": "refused",
    "output_dir": "allowed",
    "model": "refused",
    "trackers": "allowed",
    "plugins": "refused",
    "push_to_hub": "allowed",
    "repeat": "refused",
    "stages": "applied",
    "stages[].name": "refused",
    "stages[].start_from": "refused",
    "stages[].adapter": "refused",
    "stages[].alignment": "refused",
    "stages[].task": "refused",
    "stages[].data": "refused",
    "stages[].data.max_row_mb": "allowed",
    "stages[].data.max_file_mb": "allowed",
    "stages[].seed": "refused",
    "stages[].evaluate": "refused",
    "stages[].plugins": "refused",
    "stages[].train.num_train_epochs": "applied",
    "stages[].train.max_steps": "applied",
    "stages[].train.per_device_train_batch_size": "refused",
    "stages[].train.gradient_accumulation_steps": "refused",
    "stages[].train.train_batch_size": "refused",
    "stages[].train.per_device_train_tokens": "applied",
    "stages[].train.drop_last": "refused",
    "stages[].train.train_sampling_strategy": "refused",
    "stages[].train.per_device_eval_batch_size": "allowed",
    "stages[].train.learning_rate": "applied",
    "stages[].train.lr_scheduler_type": "applied",
    "stages[].train.lr_scheduler_kwargs": "applied",
    "stages[].train.warmup_steps": "applied",
    "stages[].train.warmup_ratio": "applied",
    "stages[].train.warmup_max_steps": "applied",
    "stages[].train.warmup_rounding": "applied",
    "stages[].train.optim": "refused",
    "stages[].train.weight_decay": "applied",
    "stages[].train.neftune_noise_alpha": "applied",
    "stages[].train.adam_beta1": "applied",
    "stages[].train.adam_beta2": "applied",
    "stages[].train.adam_epsilon": "applied",
    "stages[].train.max_grad_norm": "applied",
    "stages[].train.on_nan": "applied",
    "stages[].train.bf16": "refused",
    "stages[].train.tf32": "applied",
    "stages[].train.gradient_checkpointing": "applied",
    "stages[].train.gradient_checkpointing_kwargs": "applied",
    "stages[].train.activation_offloading": "allowed",
    "stages[].train.shard_base": "applied",
    "stages[].train.full_determinism": "applied",
    "stages[].train.max_length": "refused",
    "stages[].train.max_prompt_length": "refused",
    "stages[].train.packing": "refused",
    "stages[].train.packing_strategy": "refused",
    "stages[].train.cross_document_attention": "refused",
    "stages[].train.on_long_row": "refused",
    "stages[].train.max_dropped": "allowed",
    "stages[].train.logging_steps": "allowed",
    "stages[].train.save_strategy": "allowed",
    "stages[].train.save_steps": "allowed",
    "stages[].train.save_total_limit": "allowed",
}


# Two ways to say how many rows an optimiser step has: either may be edited where those are kept.
ROWS_PER_STEP = ("gradient_accumulation_steps", "train_batch_size")


@dataclass(frozen=True)
class Edit:
    """One setting that differs; `key` is its path in the recipe, `stage` the stage it is in.

    harmless: what the setting stands for is the same as before.
    """

    key: tuple[str | int, ...]
    before: Any
    after: Any
    stage: str = ""
    harmless: bool = False

    @property
    def kind(self) -> Kind:
        """What is done with it."""
        return "allowed" if self.harmless else kind_of(self.key)

    def __str__(self) -> str:
        parts = ("stages", self.stage, *self.key[2:]) if self.stage else self.key
        where = ".".join(map(str, parts))
        return f"{where}: {_shown(self.before)} -> {_shown(self.after)}"


def kind_of(key: tuple[str | int, ...]) -> Kind:
    """Return what a resumed run does with a setting; a key inside a block has the block's kind."""
    name = re.sub(r"\.\d+", "[]", ".".join(map(str, key)))
    while name not in EDITS:
        name = name.rpartition(".")[0] or name.rpartition("[")[0]
    return EDITS[name]


def edits_between(before: Recipe, after: Recipe) -> list[Edit]:
    """Return every setting in which two recipes differ, defaults written out.

    Stages are compared by name; one that came, went or moved is an edit of `stages` as a whole.
    """
    old, new = before.resolved(), after.resolved()
    was, now = old.pop("stages"), new.pop("stages")
    found = list(_between(old, new, ()))
    names, new_names = [stage["name"] for stage in was], [stage["name"] for stage in now]
    if names != new_names:
        found.append(Edit(("stages",), names, new_names))
    for index, stage in enumerate(now):
        if stage["name"] in names:
            pair = was[names.index(stage["name"])], stage
            edits = _between(*pair, ("stages", index))
            found += [Edit(e.key, e.before, e.after, stage["name"]) for e in edits]
    return found


def _between(old: Any, new: Any, key: tuple[str | int, ...]) -> Iterator[Edit]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in {**old, **new}:
            yield from _between(old.get(name), new.get(name), (*key, name))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, pair in enumerate(zip(old, new, strict=True)):
            yield from _between(*pair, (*key, number))
    elif old != new:
        yield Edit(key, old, new)


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
