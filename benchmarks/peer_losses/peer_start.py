"""Where both sides start: a tiny Llama with a ChatML template, and the first weights of adapters.

Needs torch, transformers and tokenizers alone, for it runs in a peer's environment too.
"""

from __future__ import annotations

import math
import re
import zlib
from pathlib import Path
from typing import Any

import torch

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# A parameter's own name, whatever wraps the model: PEFT, a value head, a quantiser.
_OWN = re.compile(r"(layers\.\d+\..*|score\.weight|v_head\.summary\.weight)")
_WRAPPERS = (".default", ".modules_to_save", ".original_module", ".base_layer")


def numbers(name: str, shape: tuple[int, ...], scale: float) -> torch.Tensor:
    """Return numbers in [-scale, scale] that follow from the name alone, float32."""
    count, seed = math.prod(shape), zlib.crc32(name.encode()) % 100_003
    turned = torch.sin((torch.arange(count, dtype=torch.float64) + seed) * 12.9898) * 43758.5453
    return ((turned - turned.floor()) * 2 - 1).mul(scale).float().reshape(shape)


def give_start(model: Any) -> int:
    """Give what is drawn at random its weights by name; return how many parameters those are.

    They are LoRA's A, and the head of a reward model; LoRA's B is zero in any case.
    """
    given = 0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            for wrapper in _WRAPPERS:
                name = name.replace(wrapper, "")
            found = _OWN.search(name)
            if found and re.search(r"lora_A|score\.weight|summary\.weight", found[1]):
                parameter.copy_(numbers(found[1], tuple(parameter.shape), 0.2))
                given += 1
    return given


def write_model(folder: Path) -> None:
    """Write the model and its tokenizer: bytes, <|endoftext|> as padding, <|im_end|> as the end."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    raw = Tokenizer(models.BPE(vocab={c: b for b, c in bytes_to_unicode().items()}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False, model_max_length=2048,
    )  # fmt: skip
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"  # transformers 4 knows no TokenizersBackend
    path.write_text(path.read_text("utf-8").replace("TokenizersBackend", "PreTrainedTokenizerFast"))
    config = LlamaConfig(
        vocab_size=264, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048,
        bos_token_id=None, eos_token_id=258, pad_token_id=256, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config).float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.copy_(numbers(name, tuple(parameter.shape), 0.3))
    model.save_pretrained(folder)
