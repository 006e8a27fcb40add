"""Rows to classify as token rows: as plain tokenizers give them, cut as they cut."""

from __future__ import annotations

import pytest

from llmft.api import ClassificationRow, TextRow
from llmft.api.errors import DataError
from llmft.api.train_settings import TrainSettings
from llmft.data.classification_encoding import encode_classification
from llmft.data.encoding import Encoder
from llmft.modeling.tiny_models import tiny_tokenizer

CHAT = ({"role": "user", "content": "why? " * 4}, {"role": "assistant", "content": "so"})


def encoded(*rows, limit=None, **settings):
    encoder = Encoder(tiny_tokenizer(chat=True), limit)
    return encode_classification(encoder, rows, TrainSettings(**settings))


@pytest.mark.parametrize("limit", [None, 5, 11])
@pytest.mark.parametrize("pair", [None, "of them all", "x"])
def test_a_text_has_the_tokenizers_own_ids(limit, pair):
    """The oracle is the tokenizer, called as transformers' examples call it."""
    tokenizer = tiny_tokenizer()
    cut = {"truncation": True, "max_length": limit} if limit else {}
    wanted = tokenizer("the longest", text_pair=pair, **cut)["input_ids"]
    ((row,), report) = encoded(ClassificationRow("the longest", "x", pair, "f:1"), limit=limit)
    assert list(row.input_ids) == wanted
    assert (row.label, row.n_labels, row.origin) == ("x", 0, "f:1")
    whole = tokenizer("the longest", text_pair=pair)["input_ids"]
    assert report.counts["truncated"] == (whole != wanted)


def test_a_conversation_is_as_the_template_writes_it_and_loses_its_start():
    tokenizer = tiny_tokenizer(chat=True)
    whole = tokenizer.apply_chat_template(list(CHAT), tokenize=True, return_dict=True)["input_ids"]
    ((row,), _) = encoded(ClassificationRow(CHAT, 1))
    assert list(row.input_ids) == whole
    ((row,), report) = encoded(ClassificationRow(CHAT, 1), limit=8)
    assert list(row.input_ids) == whole[-8:]
    assert report.counts["with the start of the conversation cut"] == 1


def test_huge_texts_are_cut_as_whole_ones_are():
    text, pair = "ab " * 40_000, "c" * 30_000
    ((row,), _) = encoded(ClassificationRow(text, 1, pair), limit=9)
    # Plain tokenizers take minutes for all of it: they pair every piece that is cut off.
    short = {"text": text[:99], "text_pair": pair[:99]}
    wanted = tiny_tokenizer()(**short, truncation=True, max_length=9)["input_ids"]
    assert list(row.input_ids) == wanted


def test_rows_too_long_are_dropped_or_refused_as_the_recipe_says():
    rows = [ClassificationRow("long enough", 0, None, "f:1"), ClassificationRow("a", 1)]
    kept, report = encoded(*rows, limit=4, on_long_row="drop", max_dropped=0.5)
    assert [row.label for row in kept] == [1]
    assert report.counts == {"dropped, too long": 1}
    with pytest.raises(DataError, match="f:1: the row has 11 tokens, more than 4"):
        encoded(*rows, limit=4, on_long_row="fail")
    with pytest.raises(DataError, match="a TextRow has no class"):
        encoded(TextRow("a"))


def test_lengths_for_leaving_rows_out_are_those_of_the_tokens():
    encoder = Encoder(tiny_tokenizer(), None)
    assert encoder.lengths([ClassificationRow("abc", 0), ClassificationRow("a", 1, "bc")], 9) == [
        3, 3,
    ]  # fmt: skip
