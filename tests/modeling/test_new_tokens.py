"""Tokens that a recipe adds: their ids, the rows they start from, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from llmft.api.errors import EnvironmentFault
from llmft.api.model_settings import ModelSource
from llmft.modeling.base_model import BaseModel
from llmft.modeling.new_tokens import new_token_ids
from llmft.modeling.tiny_models import tiny_gpt2, tiny_llama, tiny_model_folder

NEW = {"add_tokens": ["<tool>", "<é>"], "add_special_tokens": ["<|im_end|>"]}


def full_llama(tied: bool) -> Any:
    """Return a model with as many rows as its tokenizer has tokens."""
    config = LlamaConfig(**tiny_llama().config.to_dict() | {"vocab_size": 257})
    config.tie_word_embeddings = tied
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return LlamaForCausalLM(config).eval()


MODELS = {
    "full": lambda: full_llama(tied=False),
    "tied": lambda: full_llama(tied=True),
    "with rows to spare": tiny_llama,
    "gpt2": tiny_gpt2,
}


@pytest.mark.parametrize("model", MODELS)
def test_a_new_row_is_the_mean_of_its_pieces_and_all_others_stay(
    model: str, tmp_path: Path
) -> None:
    folder = str(tiny_model_folder(tmp_path, MODELS[model]()))
    before = AutoModelForCausalLM.from_pretrained(folder)
    state = torch.get_rng_state()
    base = BaseModel(ModelSource(path=folder, **NEW))
    after = base.load({}, varlen=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert [token.id for token in base.new_tokens] == [257, 258, 259] == [*new_token_ids(after)]
    spare = model in ("with rows to spare", "gpt2")
    assert base.vocabulary == after.config.vocab_size == (300 if spare else 260)
    old_rows = [*range(257), *range(260, 300 if spare else 260)]
    for end in ("get_input_embeddings", "get_output_embeddings"):
        old, new = getattr(before, end)().weight, getattr(after, end)().weight
        assert torch.equal(new[old_rows], old[old_rows])
        for row, text in zip((257, 258, 259), (*NEW["add_tokens"], "<|im_end|>"), strict=True):
            pieces = list(text.encode())  # the tokenizer's ids are bytes
            assert torch.allclose(new[row], old[pieces].mean(0), atol=1e-7)
    tied = after.get_input_embeddings().weight is after.get_output_embeddings().weight
    assert tied == (model in ("tied", "gpt2"))
    assert base.empty().get_input_embeddings().weight.shape == new.shape


def test_new_tokens_are_one_token_wherever_they_stand(tmp_path: Path) -> None:
    folder = tiny_model_folder(tmp_path)
    tokenizer = BaseModel(ModelSource(path=str(folder), **NEW)).tokenizer
    assert tokenizer("a<tool>b <é><|im_end|>")["input_ids"] == [97, 257, 98, 32, 258, 259]
    assert tokenizer.decode([97, 257, 259], skip_special_tokens=True) == "a<tool>"
    plain = AutoTokenizer.from_pretrained(folder)
    assert plain("a<tool>")["input_ids"] == list(b"a<tool>")


@pytest.mark.parametrize(("tokens", "key", "fact"), [
    ({"add_tokens": ["<tool>", "a"]}, "model.add_tokens.1", "already (id 97)"),
    ({"add_special_tokens": ["<eos>"]}, "model.add_special_tokens.0", "already (id 256)"),
])  # fmt: skip
def test_a_token_that_is_there_is_refused_at_its_place(
    tokens: dict[str, Any], key: str, fact: str, tmp_path: Path
) -> None:
    folder = tiny_model_folder(tmp_path)
    eos = AutoTokenizer.from_pretrained(folder).eos_token
    tokens = {k: [eos if t == "<eos>" else t for t in texts] for k, texts in tokens.items()}
    with pytest.raises(EnvironmentFault) as caught:
        _ = BaseModel(ModelSource(path=str(folder), **tokens)).tokenizer
    (fault,) = caught.value.faults
    assert (fault.code, fault.path) == ("E214", key)
    assert fact in fault.what


@pytest.mark.parametrize("tokens", [
    {"add_tokens": ["<a>", "<a>"]}, {"add_tokens": ["<a>"], "add_special_tokens": ["<a>"]},
    {"add_tokens": [" "]}, {"add_tokens": [""]}, {"add_special_tokens": ["\n"]},
])  # fmt: skip
def test_blank_tokens_and_doubles_are_no_settings(tokens: dict[str, list[str]]) -> None:
    with pytest.raises(ValueError, match=r"twice|blank|at least 1 character"):
        ModelSource(path="x", **tokens)
