"""Rows of the embedding and of the output layer that are trained beside LoRA's updates.

They are for tokens that were added to a tokenizer: PEFT's trainable tokens, which keep the rows
themselves, so that a loaded adapter does not depend on what the base has in their place.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from llmft.api import Refusal
from llmft.toolkit import new_token_ids
from llmft_adapters.lora.config import LoraConfig
from llmft_adapters.lora.targets import adapted_ends, whole_layers_for_peft
from llmft_adapters.vocabulary import is_within, vocabulary_layers

KEY = "trainable_token_indices"


def rows_for_peft(model: Any, config: LoraConfig) -> dict[str, list[int]] | None:
    """Return the ids of the rows that are trained, by the full name of their layer.

    They are the recipe's, and those of the tokens that it adds. Where the output layer is tied to
    the embedding, PEFT lets it follow. A layer that is trained whole is left out.
    """
    asked = config.trainable_token_indices or []
    rows = list(dict.fromkeys([*asked, *new_token_ids(model)]))
    if not rows:
        return None
    whole = whole_layers_for_peft(model, config) or []
    tables = [name for name, _ in vocabulary_layers(model) if not is_within(name, whole)]
    return dict.fromkeys(tables, rows) or None


def misfits(model: Any, config: LoraConfig) -> Iterable[Refusal]:
    """Yield which rows this model does not have, and why they could not be trained."""
    asked, new = config.trainable_token_indices or (), new_token_ids(model)
    if not (asked or new):
        return
    rows = min(table.weight.shape[0] for _, table in vocabulary_layers(model))
    seen: set[int] = set()
    for number, index in enumerate(asked):
        if index >= rows:
            fix = f"its rows are 0 to {rows - 1}; model.add_tokens adds a token, and its row"
            yield (KEY, number), f"the embedding has no row {index}", fix
        elif index in seen:
            yield (KEY, number), f"{index} is there twice", "leave it out"
        seen.add(index)
    if config.start_in_the_base:
        what = f"{config.start_in_the_base} is saved in a form that holds no rows of tokens"
        yield (
            ("init_lora_weights",),
            what,
            f"leave init_lora_weights out, or {KEY if asked else 'model.add_tokens'}",
        )
    whole = whole_layers_for_peft(model, config) or []
    adapted = adapted_ends(model, config)
    for name, table in vocabulary_layers(model):
        if name in adapted:
            what = f"'{name}' gets an update already, by target_modules"
            there = "leave it out here, or there" if asked else "leave it out"
            yield (KEY if asked else "target_modules",), what, there
        elif is_within(name, whole):
            if asked:
                what = f"'{name}' is trained in full already, by modules_to_save"
                yield (KEY,), what, "leave it out here, or there"
        elif not _is_plain(table):
            kind = type(table).__name__
            what = f"'{name}' is a {kind} with more than a weight, whose rows PEFT cannot train"
            fix = "write modules_to_save in its place, or adapter: {method: full}"
            yield (KEY if asked else "method",), what, fix


def indices_of(value: Any) -> Any:
    """Return a config's ids as one list, where all of its layers have the same."""
    lists = list(value.values()) if isinstance(value, dict) else [value]
    return lists[0] if lists and all(one == lists[0] for one in lists) else value


def _is_plain(table: Any) -> bool:
    import torch

    if isinstance(table, torch.nn.Embedding):
        return True
    return type(table) is torch.nn.Linear and table.bias is None
