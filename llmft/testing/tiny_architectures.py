"""Tiny bases of every architecture that llmft is tested on, built in memory from a seed."""

from __future__ import annotations

from typing import Any

from llmft.modeling.tiny_models import VOCABULARY

_SHARED = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 256,
}  # fmt: skip
_GROUPED = {**_SHARED, "intermediate_size": 64, "num_key_value_heads": 2}
_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": _GROUPED,
    "gpt2": {
        "vocab_size": VOCABULARY, "n_embd": 32, "n_inner": 64, "n_layer": 2, "n_head": 4,
        "n_positions": 128, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0,
        "bos_token_id": 1, "eos_token_id": 256,
    },
    "gpt_neox": {**_SHARED, "intermediate_size": 64},
    "qwen2": _GROUPED,
    "qwen3": {**_GROUPED, "head_dim": 16},
    "mistral": {**_GROUPED, "sliding_window": 8},
    "gemma": {**_GROUPED, "head_dim": 16},
    "phi": _GROUPED,
    "opt": {
        **_SHARED, "ffn_dim": 64, "word_embed_proj_dim": 32, "dropout": 0.0,
        "attention_dropout": 0.0,
    },
    "bloom": {
        "vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4,
        "bos_token_id": 1, "eos_token_id": 256, "pad_token_id": 0,
    },
    "bert": {**_SHARED, **_NO_DROPOUT, "intermediate_size": 64, "is_decoder": True},
}  # fmt: skip
"""Each architecture's config: two layers, width 32, no dropout."""


def tiny(architecture: str) -> Any:
    """Return a tiny base of an architecture, float32, frozen, the same at each call."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = AutoConfig.for_model(architecture, **ARCHITECTURES[architecture])
        # The real start (0.02) is so near zero that attention would not be tested.
        config.initializer_range = 0.2
        attention = "eager" if architecture == "bloom" else "sdpa"
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).float()
    model.generation_config.eos_token_id = None
    return model.requires_grad_(False).eval()
