"""A long text's tokens, window by window: those of the whole text, whatever the tokenizer."""

from __future__ import annotations

import os
import random
from itertools import chain
from pathlib import Path

import pytest

from llmft.api import TextRow
from llmft.api.model_settings import ModelSource
from llmft.api.train_settings import TrainSettings
from llmft.data import encoding, long_texts
from llmft.data.encoding import Encoder
from llmft.data.long_texts import ids_in_windows
from llmft.modeling.base_model import BaseModel
from llmft.modeling.tiny_models import tiny_tokenizer

REAL = os.environ.get("LLMFT_REAL_ASSETS")
SIGNS = [
    "word",
    "Ünder",
    "naïve",
    "日本語",
    "🙂",
    "\n",
    "\n\n",
    "    ",
    "12345",
    "...",
    "it's",
    "</s>",
]


def text_of(length: int, seed: int = 0) -> str:
    draw = random.Random(seed)
    found = ""
    while len(found) < length:
        found += draw.choice(SIGNS) + draw.choice(["", " ", " ", "  "])
    return found


def in_windows(tokenizer, text, window, margin):
    calls = []

    def read(texts):
        calls.append(len(texts))
        made = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
        pairs = zip(made["input_ids"], made["offset_mapping"], strict=True)
        return [(ids, [start for start, _ in places]) for ids, places in pairs]

    return list(chain.from_iterable(ids_in_windows(text, read, window, margin))), calls


def check(tokenizer):
    for seed in range(3):
        text = text_of(6000, seed)
        found, calls = in_windows(tokenizer, text, 500, 120)
        assert found == tokenizer(text, add_special_tokens=False)["input_ids"]
        assert calls == [-(-len(text) // 500)]  # no window was read twice


@pytest.mark.parametrize("make", [
    tiny_tokenizer, lambda: BaseModel(ModelSource(path="embedded:model")).tokenizer,
])  # fmt: skip
def test_windows_give_the_tokens_of_the_whole_text(make):
    check(make())


@pytest.mark.skipif(REAL is None, reason="LLMFT_REAL_ASSETS is not set")
@pytest.mark.parametrize("name", ["models/stories15M", "models/stories260K", "tokenizers/gpt2",
                                  "tokenizers/bert-base-uncased"])  # fmt: skip
def test_windows_give_the_tokens_of_the_whole_text_with_real_tokenizers(name):
    from transformers import AutoTokenizer

    check(AutoTokenizer.from_pretrained(Path(REAL) / name))


def test_windows_that_never_agree_are_read_as_one():
    """Tokens of three characters from where a text begins: a window's depend on its start."""

    def read(texts):
        return [
            ([hash(text[at : at + 3]) for at in range(0, len(text), 3)], range(0, len(text), 3))
            for text in texts
        ]

    text = text_of(4000)
    found = list(chain.from_iterable(ids_in_windows(text, read, 500, 100)))
    assert found == read([text])[0][0]


@pytest.mark.parametrize("special", ["text", "parse"])
def test_a_long_row_has_the_same_pieces_in_windows(monkeypatch, special):
    text = "</s> " + text_of(3000)
    rows = [
        TextRow("ab", "x:1", special),
        TextRow(text, "x:2", special),
        TextRow("c", "x:3", special),
    ]
    settings = TrainSettings(packing=True, packing_strategy="wrapped", max_length=32)
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = "</s>"
    whole, told = Encoder(tokenizer, 32).encode(rows, settings, wrap=True)
    monkeypatch.setattr(encoding, "_CACHED", 100)
    monkeypatch.setattr(encoding, "WINDOW", 400)
    calls = []

    def windows(text, read):
        calls.append(text)
        return long_texts.ids_in_windows(text, read, 400, 100)

    monkeypatch.setattr(encoding, "ids_in_windows", windows)
    found, again = Encoder(tokenizer, 32).encode(rows, settings, wrap=True)
    assert calls == [text]
    assert list(found) == list(whole)
    assert again == told
