"""Tiny models and a tokenizer, built in memory from a seed: no network, no files, no GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmft.assets.tiny_tokenizer import tiny_tokenizer

__all__ = ["VOCABULARY", "tiny_gpt2", "tiny_llama", "tiny_model_folder", "tiny_tokenizer"]

VOCABULARY = 300
"""Rows of the embedding; the tokenizer uses 257 of them: the bytes and one end-of-text token."""


def tiny_llama(seed: int = 0) -> Any:
    """Return a Llama of 2 layers and width 32 (4 heads, 2 key-value heads), float32, in eval mode.

    Leaves torch's global random state as it was.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
        bos_token_id=None, eos_token_id=256, pad_token_id=None, tie_word_embeddings=False,
    )  # fmt: skip
    return _built(LlamaForCausalLM, config, seed)


def tiny_gpt2(seed: int = 0) -> Any:
    """Return a GPT-2 of 2 layers and width 32 (Conv1D, tied embeddings), made as `tiny_llama`."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_inner=64, n_layer=2, n_head=4, n_positions=256,
        bos_token_id=256, eos_token_id=256, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0,
    )  # fmt: skip
    return _built(GPT2LMHeadModel, config, seed)


def tiny_model_folder(
    folder: Path, model: Any = None, tokenizer: Any = None, *, seed: int = 0
) -> Path:
    """Return a folder that holds a saved model (default: `tiny_llama`) with its tokenizer."""
    target = Path(folder) / "model"
    (model if model is not None else tiny_llama(seed)).save_pretrained(target)
    (tokenizer if tokenizer is not None else tiny_tokenizer()).save_pretrained(target)
    return target


def _built(cls: Any, config: Any, seed: int) -> Any:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = cls(config).float()
    model.config.use_cache = False
    return model.eval()
