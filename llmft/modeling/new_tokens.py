"""Tokens that a recipe adds to a tokenizer, and the rows that the model gets for them.

A row starts as the mean of the rows of the pieces that the token's text had before: it depends on
nothing but the base, so that every program that loads the base again starts from the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from llmft.api.errors import EnvironmentFault
from llmft.data.bounded_tokens import BoundedTokens
from llmft.system.rng import isolated_rng

ATTRIBUTE = "llmft_new_token_ids"
"""The attribute of a model that holds the ids of the tokens that were added for it."""


@dataclass(frozen=True)
class NewToken:
    """A token's text, its id, and the ids of the pieces that its text had before."""

    text: str
    id: int
    pieces: tuple[int, ...]


def add_tokens(
    tokenizer: Any, plain: Sequence[str], special: Sequence[str]
) -> tuple[NewToken, ...]:
    """Add tokens to a tokenizer, the plain ones first, and return them with their ids.

    Raises EnvironmentFault (E214) for one that the tokenizer has already, or cannot add.
    """
    if not (plain or special):
        return ()
    from tokenizers import AddedToken

    pieces = {}
    bounded = BoundedTokens(tokenizer)
    for key, texts in (("add_tokens", plain), ("add_special_tokens", special)):
        for number, text in enumerate(texts):
            pieces[text] = _pieces(tokenizer, bounded, text, f"model.{key}.{number}")
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in plain])
    marks = [AddedToken(text, normalized=False, special=True) for text in special]
    named = {"extra_special_tokens": marks} if marks else {}
    tokenizer.add_special_tokens(named, replace_extra_special_tokens=False)
    return tuple(
        NewToken(text, int(tokenizer.convert_tokens_to_ids(text)), pieces[text])
        for text in (*plain, *special)
    )


def _pieces(tokenizer: Any, bounded: BoundedTokens, text: str, key: str) -> tuple[int, ...]:
    ids = bounded.ids(text, add_special_tokens=False)
    if text in tokenizer.get_added_vocab() or (len(ids) == 1 and tokenizer.decode(ids) == text):
        known = tokenizer.convert_tokens_to_ids(text) if len(ids) != 1 else ids[0]
        raise EnvironmentFault(
            "E214",
            f"{text!r} is a token of this tokenizer already (id {known})",
            fix="leave it out; the adapter's trainable_token_indices trains a token that is there",
            path=key,
        )
    if not ids:
        raise EnvironmentFault(
            "E214",
            f"the tokenizer makes nothing of {text!r}, so its row has nothing to start from",
            fix="write another text",
            path=key,
        )
    return tuple(ids)


def give_rows(model: Any, tokens: Iterable[NewToken]) -> None:
    """Give a model a row for each new token, in the embedding and in the output layer.

    Rows that the model has beyond its tokenizer's are taken first. A model on torch's meta device
    gets the shapes.
    """
    import torch

    tokens = tuple(tokens)
    if not tokens:
        return
    needed = max(token.id for token in tokens) + 1
    with isolated_rng(), torch.no_grad():  # new rows are drawn before they are written here
        if needed > model.get_input_embeddings().weight.shape[0]:
            model.resize_token_embeddings(needed, mean_resizing=False)
        for layer in {id(end): end for end in _ends(model)}.values():
            for tensor in (layer.weight, getattr(layer, "bias", None)):
                if tensor is None or tensor.device.type == "meta":
                    continue
                for token in tokens:
                    start = tensor[list(token.pieces)].float().mean(0)
                    tensor[token.id] = start.to(tensor.dtype)
    setattr(model, ATTRIBUTE, tuple(token.id for token in tokens))


def _ends(model: Any) -> list[Any]:
    """Return the embedding, and the output layer where it has weights of its own."""
    embedding, output = model.get_input_embeddings(), model.get_output_embeddings()
    if output is None or output.weight is embedding.weight:
        return [embedding]
    return [embedding, output]


def new_token_ids(model: Any) -> tuple[int, ...]:
    """Return the ids of the tokens that the recipe adds: their rows are to be trained."""
    found: tuple[int, ...] = getattr(model, ATTRIBUTE, ())
    return found
