"""A tiny model with random weights that stands in for a real one: same architecture, same code."""

from __future__ import annotations

import copy
import shlex
from pathlib import Path
from typing import Any

from llmft.api.errors import EnvironmentFault
from llmft.api.model_settings import ModelSource
from llmft.modeling.base_model import BaseModel, locate_model, max_positions
from llmft.system.architectures import ARCHITECTURES_BY_NAME, architecture_of

WIDTH, HEADS, LAYERS, INNER = 64, 4, 2, 128
TOKENS_IN_A_BYTE_ROW = 4
"""About so many times as many tokens a row has when each byte is one."""

# What a config calls its sizes, where that is not transformers' common name for it.
_SIZES = {
    "hidden_size": WIDTH, "word_embed_proj_dim": WIDTH, "embedding_size": WIDTH,
    "num_attention_heads": HEADS, "intermediate_size": INNER, "ffn_dim": INNER,
    "ffn_hidden_size": INNER, "n_inner": INNER, "moe_intermediate_size": INNER,
    "head_dim": WIDTH // HEADS, "qk_rope_head_dim": WIDTH // HEADS,
    "qk_nope_head_dim": WIDTH // HEADS, "v_head_dim": WIDTH // HEADS,
}  # fmt: skip
_AT_MOST = {
    "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2,
    "rotary_dim": WIDTH // HEADS, "q_lora_rank": INNER, "kv_lora_rank": INNER,
}  # fmt: skip


def make_tiny_copy(
    source: ModelSource, folder: Path, seed: int, positions: int
) -> tuple[bool, str]:
    """Write a tiny model with its tokenizer into a folder; fetch nothing.

    positions: tokens that a row must be able to have.
    Returns whether the tokenizer is the model's own, and in words what the stand-in is.
    Raises EnvironmentFault where neither a config nor the name tells the architecture.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from llmft.assets.tiny_tokenizer import tiny_tokenizer

    bare: dict[str, Any] = {
        "chat_template": None, "add_tokens": [], "add_special_tokens": [], "rope_scaling": None,
    }  # fmt: skip
    real = BaseModel(source.model_copy(update=bare))
    config, told = _config(real)
    tokenizer = _own_tokenizer(real)
    own = tokenizer is not None
    if tokenizer is None:
        tokenizer = tiny_tokenizer(chat=True)
    config = shrunk(copy.deepcopy(config), positions)
    config.vocab_size = -(-(max(tokenizer.get_vocab().values()) + 1) // 64) * 64
    padding = config.pad_token_id  # of RoBERTa-like models, whose positions are counted from it
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, name, getattr(tokenizer, name, None))
    if config.pad_token_id is None and padding is not None and padding < config.vocab_size:
        config.pad_token_id = padding
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False).float()
    if own and (stops := _stops(real, config.vocab_size)):
        model.generation_config.eos_token_id = stops
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    words = "the model's own tokenizer" if own else "a token for each byte"
    size = f"{config.num_hidden_layers} layers, width {WIDTH}, {words}"
    return own, f"a random {config.model_type} ({size}) stands in for '{source.path}'{told}"


def _stops(real: BaseModel, size: int) -> list[int]:
    """Return the ids at which the real model stops, where its files are here to tell."""
    if not Path(real.path).is_dir() and not _is_cached(real.path, real.source.revision):
        return []
    return [i for i in real.stop_ids if i < size]


def shrunk(config: Any, positions: int) -> Any:
    """Return a config of the same architecture with few and narrow layers, one of each kind."""
    config = config.get_text_config()
    heads = config.num_attention_heads
    shared = getattr(config, "num_key_value_heads", None) or heads
    kinds = list(dict.fromkeys(getattr(config, "layer_types", None) or ()))
    layers = max(LAYERS, len(kinds))
    for name, size in _SIZES.items():
        follows = isinstance(getattr(type(config), name, None), property)
        if getattr(config, name, None) is not None and not follows:
            setattr(config, name, size)
    for name, most in _AT_MOST.items():
        if getattr(config, name, None) is not None:
            setattr(config, name, min(most, getattr(config, name)))
    for name in ("num_key_value_heads", "num_kv_heads"):
        if getattr(config, name, None) is not None:
            setattr(config, name, HEADS if shared == heads else 1 if shared == 1 else HEADS // 2)
    config.num_hidden_layers = layers
    if kinds:
        config.layer_types = [kinds[n % len(kinds)] for n in range(layers)]
    if max_positions(config):
        config.max_position_embeddings = positions
    _shrink_rotation(config)
    return config


def _shrink_rotation(config: Any) -> None:
    """Keep as many of a rotation's own factors as the narrow heads have pairs (LongRoPE)."""
    stated = getattr(config, "rope_parameters", None) or {}
    whole = getattr(config, "partial_rotary_factor", None) or 1.0
    kinds = [stated, *(kind for kind in stated.values() if isinstance(kind, dict))]
    for rotation in kinds:
        share = rotation.get("partial_rotary_factor") or whole
        pairs = int(WIDTH // HEADS * share) // 2
        for name in ("short_factor", "long_factor"):
            if rotation.get(name):
                rotation[name] = list(rotation[name][:pairs])


def _config(real: BaseModel) -> tuple[Any, str]:
    """Return the model's own config, or its family's, and what a person should know about it."""
    source = real.source
    if Path(real.path).is_dir() or _is_cached(real.path, source.revision):
        return real.config, ""
    family = architecture_of(source.path)
    if family is None:
        known = ", ".join(family.model_type for family in ARCHITECTURES_BY_NAME)
        raise EnvironmentFault(
            "E201",
            f"the config of '{source.path}' is not here, and its name does not tell the"
            " architecture"
            f" (known by name: {known})",
            fix=f"download it first: hf download {shlex.quote(source.path)} config.json",
        )
    from transformers import AutoConfig

    config = AutoConfig.for_model(family.model_type)
    if family.grouped:
        config.num_key_value_heads = config.num_attention_heads // 2
    if getattr(config, "is_decoder", None) is False:
        config.is_decoder = True
    return config, f", whose config is not here; by its name it is a {family.model_type}"


def _is_cached(path: str, revision: str | None) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(path, "config.json", revision=revision), str)


def _own_tokenizer(real: BaseModel) -> Any | None:
    """Return the model's tokenizer, or None where it would have to be fetched."""
    try:
        return real.tokenizer
    except EnvironmentFault:
        named = real.source.tokenizer
        if Path(locate_model(named) if named else real.path).is_dir():
            raise  # it should be there
        return None
