"""A huge text is cut before it is tokenised, and nothing that is trained on or counted changes."""

from __future__ import annotations

import pytest

from llmft.api import ChatRow, CompletionRow, PreferenceRow, PromptRow, TextRow, UnpairedRow
from llmft.api.train_settings import TrainSettings
from llmft.assets.tiny_tokenizer import tiny_tokenizer
from llmft.data.encoding import Encoder
from llmft.data.pair_encoding import encode_pairs
from llmft.data.prompt_encoding import encode_prompts
from llmft.data.shortening import _LEAST
from llmft.data.unpaired_encoding import encode_unpaired

HUGE = "x y" * _LEAST
SETTINGS = TrainSettings(max_dropped=0.99)
TURNS = ({"role": "user", "content": "a"}, {"role": "assistant", "content": HUGE})
ASKED = ({"role": "user", "content": HUGE + "b"}, {"role": "assistant", "content": "c"},
         {"role": "user", "content": "d"})  # fmt: skip


def encode(encoder, rows):
    return encoder.encode(rows, SETTINGS)


def pairs(encoder, rows):
    return encode_pairs(encoder, rows, SETTINGS)


def labelled(encoder, rows):
    return encode_unpaired(encoder, rows, SETTINGS)


def prompts(encoder, rows):
    return encode_prompts(encoder, rows, SETTINGS, 5)


ROWS = {
    "text": (encode, TextRow(HUGE)),
    "completion": (encode, CompletionRow("p", HUGE)),
    "prompt alone too long": (encode, CompletionRow(HUGE, "c")),
    "conversation": (encode, ChatRow(TURNS)),
    "pair": (pairs, PreferenceRow(HUGE + "p", "c", "r")),
    "pair of messages": (pairs, PreferenceRow(ASKED, "c", "r")),
    "answer too long": (pairs, PreferenceRow("p", HUGE, "r")),
    "unpaired": (labelled, UnpairedRow(HUGE + "p", "c", True)),
    "prompt": (prompts, PromptRow(HUGE + "p")),
}
GOOD = {
    encode: CompletionRow("p", "c"), pairs: PreferenceRow("p", "c", "r"),
    labelled: UnpairedRow("p", "c", True), prompts: PromptRow("p"),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_rows_and_counts_are_those_of_the_whole_text(name, monkeypatch):
    way, row = ROWS[name]
    found, longest = [], []
    for cut in (True, False):
        encoder = Encoder(tiny_tokenizer(chat=True), 40)
        if not cut:
            monkeypatch.setattr(encoder.shorten, "row", lambda row, *_, **__: row)
            monkeypatch.setattr(encoder.shorten, "prompt", lambda prompt, *_, **__: prompt)
        longest.append(0)
        noting(encoder, monkeypatch, longest)
        items, report = way(encoder, [GOOD[way], row])
        found.append((items, report.counts, report.kept))
    assert found[0] == found[1]
    assert longest[0] <= 2 * _LEAST < len(HUGE) <= longest[1]


def noting(encoder, monkeypatch, longest):
    """Note the longest text that becomes tokens."""
    for tokens in (encoder._tokens, encoder._chat.reader._tokens):
        plain = tokens.all_located

        def watched(texts, plain=plain, **options):
            longest[-1] = max([longest[-1], *map(len, texts)])
            return plain(texts, **options)

        monkeypatch.setattr(tokens, "all_located", watched)
        alone = tokens.located

        def one(text, alone=alone, **options):
            longest[-1] = max(longest[-1], len(text))
            return alone(text, **options)

        monkeypatch.setattr(tokens, "located", one)


def test_a_tokenizer_that_takes_characters_out_sees_the_whole_text():
    from tokenizers import normalizers

    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("z", "")
    row = CompletionRow("p", "z" * 9 * _LEAST + " the end")
    ((made,), report) = Encoder(tokenizer, 40).encode([row], SETTINGS)
    assert tokenizer.decode(made.input_ids) == "p the end</s>"
    assert not report.counts


def test_a_row_that_may_not_be_cut_is_read_whole():
    settings = TrainSettings(on_long_row="fail")
    with pytest.raises(Exception, match=f"the row has {len(HUGE) + 2} tokens, more than 40"):
        Encoder(tiny_tokenizer(), 40).encode([CompletionRow("p", HUGE)], settings)
