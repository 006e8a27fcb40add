"""The fused experts of a mixture: stacked weights, which no linear layer holds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from llmft.api import Refusal
from llmft_adapters.lora.config import LoraConfig

ROUTERS = ("gate", "router", "wg", "shared_expert_gate")
"""What architectures call the layer that deals tokens out to experts."""
# Mamba's kernels read these layers' weights, and would not see an update beside them.
_READ_BY_KERNELS = dict.fromkeys(
    ("mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h", "zamba", "zamba2", "bamba",
     "jamba", "granitemoehybrid"),
    ("out_proj", "dt_proj"),
)  # fmt: skip
# PEFT takes these names for the experts' own, whatever layer bears them.
_TAKEN_FOR_EXPERTS = ("gate_proj", "up_proj", "down_proj", "w1", "w2", "w3", "gate")


def expert_parameters(model: Any) -> list[str]:
    """Return the full names of the experts' stacked weights."""
    return [
        f"{name}.{own}"
        for name, module in model.named_modules()
        if type(module).__name__.endswith("Experts")
        for own, parameter in module.named_parameters(recurse=False)
        if parameter.dim() == 3
    ]


def is_left_out(model: Any, name: str, module: Any) -> bool:
    """Return whether all-linear leaves a linear layer out: routers, and what kernels read."""
    last = name.rpartition(".")[2]
    kind = getattr(model.config.get_text_config(), "model_type", "")
    own = type(module).__module__.startswith("transformers.models")  # it answers otherwise
    routes = last in ROUTERS and module.weight.shape[0] in {1, *_expert_counts(model)}
    read = last in _READ_BY_KERNELS.get(kind, ()) and "attn" not in name
    return own or routes or read or (last in _TAKEN_FOR_EXPERTS and _fuses(kind))


def _expert_counts(model: Any) -> set[int]:
    config = model.config.get_text_config()
    names = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    return {value for n in names if isinstance(value := getattr(config, n, None), int)}


def _fuses(kind: str) -> bool:
    """Return whether PEFT rewrites the names of an architecture's experts, from version 4's."""
    from peft.utils import transformers_weight_conversion as conversion

    patterns = getattr(conversion, "_MODEL_TO_CONVERSION_PATTERN", {})
    return patterns.get(kind) in getattr(conversion, "_MOE_TARGET_MODULE_MAPPING", {})


def fused_misfits(experts: list[str], key: str, config: LoraConfig) -> Iterable[Refusal]:
    """Yield what of the settings cannot be combined with an update of the experts."""
    if not experts:
        return
    asked: dict[str, str] = {}
    if config.lora_dropout:
        asked["lora_dropout"] = f"lora_dropout {config.lora_dropout}"
    if config.method == "dora":
        asked["method"] = "dora"
    if config.start_in_the_base:
        asked["init_lora_weights"] = f"init_lora_weights {config.start_in_the_base}"
    for name, what in asked.items():
        yield (
            (name,),
            f"{what} cannot be had for fused experts ('{experts[0]}'), which {key} adapts too",
            "leave it out, or name linear layers in target_modules, such as [q_proj, v_proj],"
            " which leaves the experts as they are",
        )
