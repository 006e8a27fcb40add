"""A tokenizer with a token for each byte, for tiny models that have none of their own."""

from __future__ import annotations

from typing import Any


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
