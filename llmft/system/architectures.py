"""Families of models, told by a name: their architecture, and what their layers are called."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

from llmft.system.plain_files import read_text


class Architecture(NamedTuple):
    """Models of one architecture.

    model_type: transformers' word for it. names: a regex that hub ids of the family match.
    layers: the names of its linear layers. grouped: whether its heads share keys and values.
    """

    model_type: str
    names: str
    layers: tuple[str, ...]
    grouped: bool = False


ENDS = ("embed_tokens", "lm_head")
"""What most families call the embedding and the output layer."""
_LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_NEOX = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
_BERT = ("query", "key", "value", "dense")

# The first whose regex is found in a name, in small letters, is meant.
ARCHITECTURES_BY_NAME = (
    Architecture("mixtral", r"mixtral", ("q_proj", "k_proj", "v_proj", "o_proj"), True),
    Architecture("mistral", r"mistral|ministral|zephyr", _LLAMA, True),
    Architecture("qwen3", r"qwen-?3", _LLAMA, True),
    Architecture("qwen2", r"qwen|qwq", _LLAMA, True),
    Architecture("gemma3_text", r"gemma-?3", _LLAMA, True),
    Architecture("gemma2", r"gemma-?2", _LLAMA, True),
    Architecture("gemma", r"gemma", _LLAMA, True),
    Architecture("phi3", r"phi-?[34]", ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"), True),
    Architecture("phi", r"\bphi-", ("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2")),
    Architecture("gpt_neox", r"pythia|neox|dolly", _NEOX),
    Architecture("gpt2", r"gpt-?2", ("c_attn", "c_proj", "c_fc")),
    Architecture("opt", r"\bopt-", ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")),
    Architecture("bloom", r"bloom", _NEOX),
    Architecture("falcon", r"falcon", _NEOX),
    Architecture("roberta", r"roberta", _BERT),
    Architecture("bert", r"(?<![a-z])bert(?![a-z])", _BERT),
    Architecture("llama", r"llama|vicuna|smollm|embedded:model|(?<![a-z])yi-", _LLAMA, True),
)


def architecture_of(path: str) -> Architecture | None:
    """Return the family of a model: a folder's by its config.json, else by what its name says."""
    try:
        config = json.loads(read_text(Path(path).expanduser() / "config.json", 2**26))
    except (OSError, ValueError, RecursionError):
        config = None
    if isinstance(config, dict):
        kind = config.get("model_type")
        return next((family for family in ARCHITECTURES_BY_NAME if family.model_type == kind), None)
    name = path.lower()
    return next((family for family in ARCHITECTURES_BY_NAME if re.search(family.names, name)), None)
