"""The kit's tiny models and tokenizer: the same at each call, offline, and disturbing nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from llmft.testing import tiny_gpt2, tiny_llama, tiny_model_folder, tiny_tokenizer


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_a_tiny_model_is_the_same_at_each_call_and_moves_no_random_state(make: Any) -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first, second, other = make().state_dict(), make().state_dict(), make(seed=1).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_the_tiny_tokenizer_gives_every_text_back() -> None:
    tokenizer = tiny_tokenizer()
    text = "Oslo — ß🙂\n\ttabs  and spaces"
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert ids == list(text.encode())
    assert (tokenizer.eos_token_id, tokenizer.pad_token) == (256, None)
    assert tokenizer.chat_template is None
    assert tiny_tokenizer(pad=True).pad_token_id == 257
    messages = [{"role": "user", "content": "Hi"}]
    assert tiny_tokenizer(chat=True).apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    ) == "user: Hi\nassistant: "  # fmt: skip


def test_a_tiny_model_folder_loads_offline(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tiny_model_folder(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    expected = tiny_llama().state_dict()
    assert all(torch.equal(expected[name], t) for name, t in model.state_dict().items())
    assert AutoTokenizer.from_pretrained(folder, local_files_only=True)("A").input_ids == [65]
    assert not list(folder.glob("*.bin"))
