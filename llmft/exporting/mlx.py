"""`llmft export --to mlx`: a merged model as mlx-lm reads it.

mlx-lm loads a folder of transformers, but its classes know the positions by the names that
transformers had before version 5: without them it would take its own defaults in silence.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmft.api.errors import RecipeError

VERSION = "0.32.2"
# The model types that this version of mlx-lm has a class for, in mlx_lm/models, and those that
# MODEL_REMAPPING in mlx_lm/utils.py leads to one.
_NAMES = """
Klear afm7 afmoe apertus baichuan_m1 bailing_hybrid bailing_moe bailing_moe_linear bailing_moe_v3
bitnet cohere cohere2 dbrx deepseek deepseek_v2 deepseek_v3 deepseek_v32 deepseek_v41 dots1
ernie4_5 ernie4_5_moe exaone exaone4 exaone_moe falcon_h1 gear gemma gemma2 gemma3 gemma3_text
gemma3n gemma4 gemma4_text glm glm4 glm4_moe glm4_moe_lite glm_moe_dsa gpt2 gpt_bigcode gpt_neox
gpt_oss gptj granite granitemoe granitemoehybrid helium hunyuan hunyuan_v1_dense internlm2
internlm3 iquestloopcoder jamba kimi_k25 kimi_k3 kimi_linear kimi_vl laguna lfm2-vl lfm2 lfm2_moe
lille-130m llama llama4 llama4_text longcat_flash longcat_flash_ngram mamba mamba2 mellum mimo
mimo_v2_flash minicpm minicpm3 minimax minimax_m3_vl ministral3 mistral3 mistral4 mixtral
muse_glimmer muse_spark nanbeige nanochat nemotron-nas nemotron nemotron_h olmo olmo2 olmo3
olmo_hybrid olmoe openelm phi phi3 phi3small phimoe phixtral pixtral plamo plamo2 plamo3
prism_hadamard_qwen35 qwen qwen2 qwen2_moe qwen2_vl qwen3 qwen3_5 qwen3_5_moe qwen3_moe qwen3_next
qwen3_vl qwen3_vl_moe recurrent_gemma rwkv7 seed_oss smollm3 solar_open spark2_5 stablelm
starcoder2 step3p5 talkie telechat3 youtu_llm mistral llava phi-msft falcon_mamba joyai_llm_flash
kimi_k2 qwen2_5_vl minimax_m2 iquestcoder xverse gemma4_unified deepseek_v41_text
"""
TYPES = frozenset(_NAMES.split())
_NOT_SCALING = ("rope_theta", "partial_rotary_factor")


def refuse_unknown(model_type: str) -> None:
    """Raise RecipeError (E090) where mlx-lm has no class for a type of model."""
    if model_type not in TYPES:
        raise RecipeError(
            "E090",
            f"mlx-lm {VERSION} has no model of the type '{model_type}'",
            fix="should a newer one have it: llmft export RUN --to hf --output DIR",
        )


def with_older_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config.json that names its rotary positions as mlx-lm's classes do, besides."""
    found = dict(config)
    text = found.get("text_config")
    if isinstance(text, dict):
        found["text_config"] = with_older_names(text)
    rope = found.get("rope_parameters")
    if not isinstance(rope, dict):
        return found
    of_layers = {name: value for name, value in rope.items() if isinstance(value, dict)}
    if of_layers:  # as in Gemma 3: full attention has other positions than a sliding window
        rope = of_layers.get("full_attention", {})
        if "rope_theta" in (near := of_layers.get("sliding_attention", {})):
            found["rope_local_base_freq"] = near["rope_theta"]
    found |= {name: rope[name] for name in _NOT_SCALING if name in rope}
    if found.get("model_type") == "gpt_neox" and "rope_theta" in rope:
        found["rotary_emb_base"] = rope["rope_theta"]
        found["rotary_pct"] = rope.get("partial_rotary_factor", 0.25)
    kind = rope.get("rope_type", "default")
    if kind != "default":
        scaling = {name: value for name, value in rope.items() if name not in _NOT_SCALING}
        found["rope_scaling"] = scaling | {"type": kind}
    return found


def command(folder: Path, *, asks_chat: bool) -> str:
    """Return what to type to ask the model. asks_chat: whether it was trained on conversations."""
    words = ["mlx_lm.generate", "--model", str(folder), "--prompt", "your question"]
    return shlex.join(words + ([] if asks_chat else ["--ignore-chat-template"]))


def notes(folder: Path, *, asks_chat: bool) -> tuple[str, ...]:
    """Return what a person should know: how to quantise, and what mlx-lm does not do."""
    words = ["mlx_lm.convert", "--hf-path", str(folder), "-q", "--mlx-path", f"{folder}-4bit"]
    found = [f"with 4-bit weights: {shlex.join(words)}"]
    if not asks_chat:
        found.append(
            "trained on single questions: mlx-lm asks them as they are typed, so write the prompt"
            " template of the run around them"
        )
    return tuple(found)
