"""The model that every contestant starts from: random weights, a byte-level tokenizer.

python model_folder.py FOLDER     # of a task, written by workload.write_task
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def write_model(folder: Path) -> None:
    """Write `model/` into a task's folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from workload import read_task

    from llmft.modeling.tiny_models import tiny_tokenizer

    shape = read_task(folder).shape
    config = LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, num_hidden_layers=shape.layers,
        intermediate_size=shape.intermediate, num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads, max_position_embeddings=shape.positions,
        tie_word_embeddings=shape.tied, bos_token_id=None, eos_token_id=256, pad_token_id=257,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).float().save_pretrained(folder / "model")
    tiny_tokenizer(pad=True).save_pretrained(folder / "model")


def broadcast_parameters(model: Any) -> None:
    """Draw every adapter's A from a seed, by its layer's name, and a scalar head; B is zero."""
    import torch

    fill_alike(
        {
            name[name.index("layers.") : name.index(".lora_A")]: parameter.data
            for name, parameter in model.named_parameters()
            if "lora_A" in name
        }
    )
    for name, parameter in model.named_parameters():
        if name.rpartition("score.")[1]:
            width = parameter.shape[-1]
            noise = torch.randn(1, width, generator=torch.Generator().manual_seed(1))
            parameter.data.copy_(noise / width**0.5)


def fill_alike(named: dict[str, Any]) -> None:
    """Draw every A from a seed. named: A (rank, in) by its layer, as 'layers.0.mlp.up_proj'."""
    import torch

    generator = torch.Generator().manual_seed(0)
    for name in sorted(named):
        named[name].copy_(0.05 * torch.randn(named[name].shape, generator=generator))


def untied_weights(folder: Path) -> dict[str, Any]:
    """Return the model's tensors with an output layer of its own, as some peers want it."""
    from safetensors.torch import load_file

    weights: dict[str, Any] = load_file(folder / "model" / "model.safetensors")
    weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"].clone())
    return weights


if __name__ == "__main__":
    write_model(Path(sys.argv[1]))
