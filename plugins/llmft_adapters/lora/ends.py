"""LoRA on the embedding and on the output layer: what of it is refused, and PEFT's copies of them.

PEFT writes the frozen weights of both beside an update of either (`save_embedding_layers`). Here
they are not written: the base has them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from llmft.api import CheckpointError, Refusal
from llmft_adapters.lora.config import LoraConfig
from llmft_adapters.lora.targets import adapted_ends
from llmft_adapters.vocabulary import both_ends

WEIGHTS = "adapter_model.safetensors"
_COPY = re.compile(r"base_model\.model\.(.+)\.base_layer\.weight")


def misfits(model: Any, config: LoraConfig) -> Iterable[Refusal]:
    """Yield why the embedding or the output layer can get no update, where one is asked for."""
    import torch

    chosen, ends = adapted_ends(model, config), both_ends(model)
    tied = bool(getattr(model.config.get_text_config(), "tie_word_embeddings", False))
    tied = tied or ends[0][1].weight is ends[-1][1].weight
    for name, layer in ends if chosen else ():
        if name not in chosen:
            continue
        key, fix = _asked_by(name, config)
        is_table = isinstance(layer, torch.nn.Embedding)
        if tied:
            other = "the output layer" if is_table else "the embedding"
            what = f"'{name}' is one with {other}, and an update would tear them apart"
            more = "; trainable_token_indices trains rows of both, adapter: {method: full} all"
            yield key, what, fix + more
        elif not (is_table or isinstance(layer, torch.nn.Linear)):
            what = f"'{name}' is a {type(layer).__name__}, which PEFT gives no update"
            yield key, what, fix
        elif is_table and config.start_in_the_base:
            what = f"{config.start_in_the_base} starts linear layers, and '{name}' is an embedding"
            yield ("init_lora_weights",), what, "leave it out, or the embedding in target_modules"


def _asked_by(name: str, config: LoraConfig) -> tuple[tuple[str | int, ...], str]:
    """Return the key by which a recipe asks for a layer, and how it is left out."""
    asked = config.target_modules
    if isinstance(asked, str):
        return ("target_modules",), f"write exclude_modules: [{name.rpartition('.')[2]}]"
    ends = (n for n, one in enumerate(asked) if name == one or name.endswith(f".{one}"))
    return ("target_modules", next(ends)), "leave it out"


def copies_of(model: Any, shapes: Mapping[str, tuple[int, ...]]) -> set[str]:
    """Return which tensors of a PEFT folder are copies of the base's embedding or output layer.

    shapes: of the folder's tensors, by name. Those of another shape than the base's are none.
    """
    ends = {name: tuple(layer.weight.shape) for name, layer in both_ends(model)}
    found = {name: match[1] for name in shapes if (match := _COPY.fullmatch(name))}
    return {name for name, end in found.items() if ends.get(end) == shapes[name]}


def refuse_other_base(model: Any, folder: Path) -> None:
    """Raise CheckpointError (E405) where a folder's copy of an end is not the base's own."""
    import torch
    from safetensors import safe_open

    ends = dict(both_ends(model))
    with safe_open(folder / WEIGHTS, framework="pt") as held:
        for key in held.keys():  # noqa: SIM118 -- no mapping
            match = _COPY.fullmatch(key)
            name = match[1] if match else ""
            if name not in ends:
                continue
            own, copy = ends[name].weight.detach().cpu(), held.get_tensor(key)
            if not torch.equal(copy.to(own.dtype), own):
                raise CheckpointError(
                    "E405",
                    f"the adapter holds a copy of its base's '{name}', and this base has another"
                    " one there",
                    fix="give the model that it was trained on as model.path",
                )
