"""Tiny models and a tokenizer, built in memory from a seed: no network, no files, no GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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


def tiny_tokenizer(pad: bool = False, chat: bool = False) -> Any:
    """Return a byte-level tokenizer: ids 0 to 255 are the bytes, 256 is '</s>', the end of text.

    pad: bring a padding token too (257); without it there is none, as with many base models.
    chat: bring a chat template.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    vocabulary = {letter: byte for byte, letter in bytes_to_unicode().items()}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(["</s>", "<pad>"] if pad else ["</s>"])
    extra = {"pad_token": "<pad>"} if pad else {}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="</s>", clean_up_tokenization_spaces=False, **extra
    )
    if chat:
        tokenizer.chat_template = (
            "{% for message in messages %}{{ message.role }}: {{ message.content }}"
            "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
            "{% if add_generation_prompt %}assistant: {% endif %}"
        )
    return tokenizer


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
