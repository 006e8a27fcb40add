"""Families of models, told by a name: their architecture, and what their layers are called."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple


class Family(NamedTuple):
    """Models of one architecture.

    model_type: transformers' word for it. names: a regex that hub ids of the family match.
    layers: the names of its linear layers. grouped: whether its heads share keys and values.
    """

    model_type: str
    names: str
    layers: tuple[str, ...]
    grouped: bool = False


_LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_NEOX = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
_BERT = ("query", "key", "value", "dense")

# The first whose regex is found in a name, in small letters, is meant.
FAMILIES = (
    Family("mixtral", r"mixtral", ("q_proj", "k_proj", "v_proj", "o_proj"), True),
    Family("mistral", r"mistral|ministral|zephyr", _LLAMA, True),
    Family("qwen3", r"qwen-?3", _LLAMA, True),
    Family("qwen2", r"qwen|qwq", _LLAMA, True),
    Family("gemma3_text", r"gemma-?3", _LLAMA, True),
    Family("gemma2", r"gemma-?2", _LLAMA, True),
    Family("gemma", r"gemma", _LLAMA, True),
    Family("phi3", r"phi-?[34]", ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"), True),
    Family("phi", r"\bphi-", ("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2")),
    Family("gpt_neox", r"pythia|neox|dolly", _NEOX),
    Family("gpt2", r"gpt-?2", ("c_attn", "c_proj", "c_fc")),
    Family("opt", r"\bopt-", ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")),
    Family("bloom", r"bloom", _NEOX),
    Family("falcon", r"falcon", _NEOX),
    Family("roberta", r"roberta", _BERT),
    Family("bert", r"(?<![a-z])bert(?![a-z])", _BERT),
    Family("llama", r"llama|vicuna|smollm|embedded:model|(?<![a-z])yi-", _LLAMA, True),
)


def family_of(path: str) -> Family | None:
    """Return the family of a model: a folder's by its config.json, else by what its name says."""
    try:
        config = json.loads((Path(path).expanduser() / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        config = None
    if isinstance(config, dict):
        kind = config.get("model_type")
        return next((family for family in FAMILIES if family.model_type == kind), None)
    name = path.lower()
    return next((family for family in FAMILIES if re.search(family.names, name)), None)
