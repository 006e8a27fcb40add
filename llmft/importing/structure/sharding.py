"""A model that is divided among processes: FSDP's full_shard, ZeRO's third stage."""

from __future__ import annotations

import re
from typing import Any

from llmft.importing.configuration import Configuration, Key, as_bool
from llmft.importing.peer_translation import Translation

_THIRD_STAGE = re.compile(r"(?:zero|z|stage)[-_]?3", re.IGNORECASE)
_SAMPLE = ("ppo", "grpo", "rloo", "gkd")


def divide(t: Translation) -> None:
    """Let the layers be divided where all of a model's weights are, and a recipe can have it so.

    What a file says of it beside that, such as weights that wait on the CPU, is not taken over.
    """
    key = _asked(t.configuration)
    launched = bool(_THIRD_STAGE.search(t.configuration.launcher))
    if (key is None and not launched) or t.draft.get("alignment.method") in _SAMPLE:
        return
    eight = t.draft.get("model.quantization.load_in_8bit") is True
    if eight or t.draft.get("alignment.method") is None:
        return
    why = "each process keeps a share of the layers; numbers are those of whole ones"
    t.set("train.shard_base", True, key, why if key else f"the launcher's file; {why}")
    if key is not None:
        t.taken.add(key.name)


def _asked(configuration: Configuration) -> Key | None:
    """Return the key that asks for a division of the weights, or None."""
    keys = configuration.keys

    def said(name: str) -> Any:
        key = keys.get(name)
        return None if key is None else as_bool(key.value)

    strategy = str(
        said("fsdp_config.fsdp_sharding_strategy")
        or said("fsdp_config.sharding_strategy")
        or said("fsdp.sharding_strategy")
        or "FULL_SHARD"
    )
    kept = said("fsdp_config.reshard_after_forward"), said("fsdp_config.fsdp_reshard_after_forward")
    full = strategy.upper() == "FULL_SHARD" and False not in kept
    if full and said("fsdp.enable_fsdp") is True:
        return keys["fsdp.enable_fsdp"]
    for name in ("fsdp_version", "fsdp"):
        value = keys[name].value if name in keys else None
        named = value if isinstance(value, list) else str(value or "").split()
        if full and value and (name == "fsdp_version" or {"full_shard", "true"} & {*named}):
            return keys[name]
    if full and said("fsdp") is True:
        return keys["fsdp"]
    if said("deepspeed.enable_deepspeed") is True:
        stage = keys.get("deepspeed.zero_stage")
        return stage if stage is not None and _THIRD_STAGE.search(str(stage.value)) else None
    for name in ("deepspeed", "accelerate_config"):
        if name in keys and _THIRD_STAGE.search(str(keys[name].value)):
            return keys[name]
    return None
