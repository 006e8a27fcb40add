"""A small copy of a model's config: the same architecture and layer kinds, few and narrow layers.

Sizes are stated in transformers' names, as far as an architecture has them; what must fit together
in one architecture only stands in a table by `model_type`.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

SMALL_ENOUGH = 3_000_000
"""Parameters of a model that is tried as it is."""
TOO_LARGE = 40_000_000
"""Parameters of a small copy that did not become small: an unknown size is in its config."""
TOO_WIDE = 400_000_000
"""Parameters of a copy that is only shallow, beyond which none is made."""

_WINDOW = 8
_SIZES: dict[str, Any] = {
    "vocab_size": 512, "hidden_size": 64, "d_model": 64, "n_embd": 64, "intermediate_size": 96,
    "ffn_dim": 96, "num_hidden_layers": 4, "n_layer": 4, "n_layers": 4, "num_layers": 4,
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "max_position_embeddings": 256, "n_positions": 256, "max_seq_len": 256,
    "num_experts": 4, "n_routed_experts": 4, "num_local_experts": 4, "moe_num_experts": 4,
    "num_experts_per_tok": 2, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32,
    "sliding_window": _WINDOW, "attention_window_size": _WINDOW, "attention_chunk_size": _WINDOW,
    "local_attention": _WINDOW, "window_size": _WINDOW,
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 16, "word_embed_proj_dim": 64, "rotary_dim": 8, "n_group": 1, "topk_group": 1,
    "query_pre_attn_scalar": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "mamba_d_state": 8, "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_expand": 2, "state_size": 8,
    "num_heads": 8, "linear_num_value_heads": 4, "linear_num_key_heads": 2,
    "linear_key_head_dim": 16, "linear_value_head_dim": 16, "kv_channels": 16,
    "encoder_hash_byte_group_vocab": 512, "vocab_size_per_layer_input": 512,
    "hidden_size_per_layer_input": 16,
    "intermediate_size_mlp": 96, "shared_intermediate_size": 48, "embedding_size": 64,
}  # fmt: skip

_MLA = {"head_dim": 8, "num_key_value_heads": 4}
_LIKE_ROBERTA = {"pad_token_id": 1, "max_position_embeddings": 258, "num_key_value_heads": None}
_STACK = {
    "vocab_size": 512, "hidden_size": 64, "hidden_size_global": 64, "intermediate_size": 96,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16,
}  # fmt: skip
BY_TYPE: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        ("deepseek_v2", "deepseek_v3", "deepseek_v32", "axk1", "axk2", "glm4_moe_lite",
         "glm_moe_dsa", "minicpm3", "youtu", "kimi_linear", "bailing_hybrid"),
        _MLA,
    ),
    **dict.fromkeys(
        ("camembert", "roberta", "xlm-roberta", "data2vec-text", "roberta-prelayernorm",
         "xlm-roberta-xl"),
        _LIKE_ROBERTA,
    ),
    "longcat_flash": {**_MLA, "qk_head_dim": 16},
    "blt": {f"{part}_config": _STACK for part in ("patcher", "encoder", "global", "decoder")},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 500_000.0},
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "dots3_note_text": {
        "num_attention_heads": 4, "num_key_value_heads": 4, "kv_lora_rank": 16,
        "qk_nope_head_dim": 8, "head_dim": 20,
        "per_layer_config": {
            layer: {
                "num_attention_heads": 2, "num_key_value_heads": 2, "kv_lora_rank": 24,
                "qk_nope_head_dim": 12,
            }
            for layer in (1, 3)
        },
    },
    "git": {
        "vision_config": {
            "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
            "num_attention_heads": 4, "image_size": 32,
        },
    },
    "falcon_h1": {"mamba_d_ssm": 128, "mamba_n_groups": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "dots1": {"n_shared_experts": 1, "num_experts_per_tok": 2},
    "gemma3n_text": {
        "num_hidden_layers": 10, "num_kv_shared_layers": 5,
        "activation_sparsity_pattern": [0.0] * 10,
        "layer_types": (["sliding_attention"] * 4 + ["full_attention"]) * 2,
    },
    "kimi_linear": {**_MLA, "num_experts_per_token": 2, "num_experts_per_tok": 2},
    "laguna": {"num_attention_heads_per_layer": [4] * 4},
    "modernbert-decoder": {"pad_token_id": 0},
    "phi4_multimodal": {
        "vision_config": {
            "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
            "num_attention_heads": 4,
        },
        "audio_config": {
            "hidden_size": 64, "intermediate_size": 96, "num_blocks": 2, "num_attention_heads": 4,
        },
    },
    "recurrent_gemma": {"num_hidden_layers": 3},
    "marian": {"decoder_vocab_size": 512},
    "xlnet": {"d_head": 16},
    "xlstm": {"embedding_dim": 64, "num_blocks": 4},
    "zamba": {
        "head_dim": 32, "attention_head_dim": 32, "attention_hidden_size": 128, "mamba_dt_rank": 4,
    },
    "zamba2": {"head_dim": 32},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip
"""What must fit together in one architecture."""

_DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_KINDS = ("layer_types", "layers_block_type", "block_types", "mlp_layer_types")


def small_config(config: Any, *, narrow: bool = True) -> Any:
    """Return a small config of the same architecture, with every kind of layer that it has.

    narrow: else it has few layers and tokens only, as wide as they are.

    Raises what the architecture's own config or layers raise, where the sizes do not fit.
    """
    config = config.get_text_config()
    cls, stated = type(config), config.to_dict()
    known = {*stated, *getattr(cls, "attribute_map", {})}
    sizes = _SIZES if narrow else {n: _SIZES[n] for n in ("vocab_size", *_DEPTHS)}
    changed = {n: v for n, v in sizes.items() if n in known and _has(config, n)}
    extra = BY_TYPE.get(config.model_type, {}) if narrow else {}
    layers = extra.get("num_hidden_layers", _SIZES["num_hidden_layers"])
    for name in _KINDS:
        if isinstance(kinds := stated.get(name), list) and kinds:
            distinct = list(dict.fromkeys(kinds))
            changed[name] = [distinct[n % len(distinct)] for n in range(layers)]
    heads, shared = _number(config, "num_attention_heads"), _number(config, "num_key_value_heads")
    if heads and shared and narrow:
        changed["num_key_value_heads"] = 4 if heads == shared else 1 if shared == 1 else 2
    changed |= {n: v for n, v in extra.items() if v is not None and (n in known or n in stated)}
    declared = {field.name: field.type for field in fields(cls)}  # the rest follows from these
    kept = {
        n: v for n, v in stated.items() if n in declared and n not in _DERIVED and n not in changed
    }
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if isinstance(kept.get(name), int) and kept[name] >= _SIZES["vocab_size"]:
            absent = None if "None" in str(declared[name]) else 0
            kept[name] = absent if name == "pad_token_id" else 2
    made = cls(**{**kept, **changed})
    if narrow:
        _shrink_rotation(made)
    if getattr(config, "is_decoder", None) is True:
        made.is_decoder = True
    return made


_DERIVED = ("model_type", "architectures", "transformers_version", "dtype", "torch_dtype",
            "quantization_config", "_name_or_path", "auto_map", "per_layer_config",
            "attention_layers")  # fmt: skip


def _has(config: Any, name: str) -> bool:
    """Return whether a size is stated; a window that is None is none at all."""
    try:
        return getattr(config, name, None) is not None
    except Exception:
        return False


def _number(config: Any, name: str) -> int:
    value = getattr(config, name, None) if _has(config, name) else None
    return value if isinstance(value, int) else 0


def _shrink_rotation(config: Any) -> None:
    """Keep as many of a rotation's factors as narrow heads have pairs (LongRoPE, M-RoPE)."""
    stated = getattr(config, "rope_parameters", None) or {}
    width = _number(config, "qk_rope_head_dim") or _number(config, "head_dim") or 16
    whole = getattr(config, "partial_rotary_factor", None) or 1.0
    for rotation in (stated, *(kind for kind in stated.values() if isinstance(kind, dict))):
        pairs = int(width * (rotation.get("partial_rotary_factor") or whole)) // 2
        for name in ("short_factor", "long_factor"):
            if rotation.get(name):
                rotation[name] = list(rotation[name][:pairs])
        if sum(rotation.get("mrope_section") or ()) > pairs:
            rotation["mrope_section"] = [pairs - 2 * (pairs // 4), pairs // 4, pairs // 4]
