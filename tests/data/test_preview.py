"""Rows as they are trained on: their text, what is learnt, which are shown, and the numbers."""

from __future__ import annotations

import random

import pytest

from llmft.api import (
    ChatRow,
    ClassificationRow,
    CompletionRow,
    Encoded,
    PreferenceRow,
    TextRow,
)
from llmft.api.errors import Fault
from llmft.api.train_settings import TrainSettings
from llmft.data.duplicates import duplicates
from llmft.data.encoding import Encoder
from llmft.data.pair_encoding import encode_pairs
from llmft.data.preview import PICKS, Seen, histogram, stage_preview
from llmft.data.preview_page import facts, preview_page, shortened
from llmft.data.shown_rows import Piece, pieces_of
from llmft.data.usable_rows import Rows

USER = {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": "yo"}
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def preview(tokenizer, rows, *, encode=Encoder.encode, max_length=None, picks=2, only=PICKS, **k):
    settings = TrainSettings(max_dropped=1.0, **k)
    encoder, whole = Encoder(tokenizer, max_length), Encoder(tokenizer, None)
    items, report = encode(encoder, rows, settings)
    seen = Seen(
        Rows(rows), None, items, report, tokenizer, max_length,
        lambda some: encode(whole, some, settings, refuse=False)[0],
        duplicates(rows, ()),
    )  # fmt: skip
    return stage_preview(seen, picks=picks, seed=0, only=only, name="s", method="m", data="d")


def text(row, name=""):
    return "".join(p.text for part in row.parts if part.name == name for p in part.pieces)


def learnt(row):
    return "".join(p.text for part in row.parts for p in part.pieces if p.learnt)


def test_the_shown_text_is_what_the_tokenizer_decodes_and_learnt_where_labels_are(tokenizer):
    row = CompletionRow("Où ? 🙂 ", "là 🙂", (), "f:1")
    (shown,) = preview(tokenizer, [row], only=("first",)).rows
    ids = shown.ids["row"]["input_ids"]
    assert text(shown) == tokenizer.decode(ids)
    kept = [i for i, label in zip(ids, shown.ids["row"]["labels"], strict=True) if label != -100]
    assert learnt(shown) == tokenizer.decode(kept) == "là 🙂" + tokenizer.eos_token
    (end,) = [p for p in shown.parts[0].pieces if p.special]
    assert end == Piece(tokenizer.eos_token, learnt=True, special=True)
    assert (shown.parts[0].tokens, shown.parts[0].trained_tokens) == (len(ids), len(kept))


def test_any_split_of_any_text_gives_back_the_whole(tokenizer):
    rng = random.Random(0)
    for _ in range(50):
        ids = tuple(tokenizer("".join(rng.choices("aé🙂 \n漢", k=12)))["input_ids"])
        labels = tuple(i if rng.random() < 0.5 else -100 for i in ids)
        pieces = list(pieces_of(tokenizer, Encoded(ids, labels), (), 0, len(ids)))
        assert "".join(p.text for p in pieces) == tokenizer.decode(ids)


def test_roles_are_marked_where_the_turns_stand(tokenizer):
    tokenizer.chat_template = CHATML
    turns = ("system", "user", "assistant"), ("Rhyme.", "user", "So & so.")
    row = ChatRow(tuple({"role": r, "content": c} for r, c in zip(*turns, strict=True)), "f:1")
    (shown,) = preview(tokenizer, [row], only=("first",)).rows
    marked = [(p.text, p.role) for p in shown.parts[0].pieces if p.role]
    assert marked[0] == ("Rhyme.", "system")
    assert ("So & so.", "assistant") in marked
    assert preview(tokenizer, [row]).split_rows == 0


def test_a_pair_shows_the_shared_prompt_once(tokenizer):
    rows = [PreferenceRow("Q: a? A:", " yes", " no", None, "f:1")]
    found = preview(tokenizer, rows, encode=encode_pairs)
    (shown,) = found.rows
    assert [part.name for part in shown.parts] == ["prompt", "chosen", "rejected"]
    assert text(shown, "prompt") + text(shown, "chosen") == "Q: a? A: yes" + tokenizer.eos_token
    assert text(shown, "rejected").endswith("no" + tokenizer.eos_token)
    assert found.kind == "pairs"
    sizes = {name: len(ids["input_ids"]) for name, ids in shown.ids.items()}
    assert sum(sizes.values()) == found.tokens


def test_rows_are_picked_by_why_they_matter_and_shown_once(tokenizer):
    rows = [CompletionRow("p", "c" * n, (), f"f:{n}") for n in range(1, 40)]
    rows += [CompletionRow("p" * 90, "c", (), "f:lost")]
    found = preview(tokenizer, rows, max_length=30, picks=1)
    by = {kind: row for row in found.rows for kind in row.picked}
    assert set(by) == set(PICKS)
    assert by["first"].origin == "f:1"
    assert by["longest"].parts[0].tokens == 30
    assert by["cut"].lost == "truncated"
    assert by["cut"].whole_tokens == 31  # the first that is too long: 1 + 29 + the end
    assert by["dropped"].origin == "f:lost"
    assert len({row.origin for row in found.rows}) == len(found.rows)
    assert (found.read, found.items, found.dropped, found.cut) == (40, 39, 1, 11)


def test_only_some_kinds_and_as_many_as_asked(tokenizer):
    rows = [CompletionRow("p", "c" * n, (), f"f:{n}") for n in range(1, 40)]
    found = preview(tokenizer, rows, max_length=30, picks=3, only=("cut",))
    assert [row.origin for row in found.rows] == ["f:29", "f:30", "f:31"]
    assert all(row.picked == ("cut",) for row in found.rows)


def test_a_huge_row_is_not_tokenised_again_to_show_that_it_is_dropped(tokenizer):
    rows = [CompletionRow("p" * 300_000, "c", (), "f:1"), CompletionRow("p", "c", (), "f:2")]
    found = preview(tokenizer, rows, max_length=30, only=("dropped",))
    assert found.rows[0].parts[0].tokens == 0
    assert text(found.rows[0]).startswith("ppp")


def test_numbers_are_those_of_the_items(tokenizer):
    rows = [TextRow("abc", "f:1"), TextRow("abcdef", "f:2"), TextRow("abc", "f:3")]
    found = preview(tokenizer, rows)
    assert found.tokens == 4 + 7 + 4  # bytes, and the end of the text
    assert found.trained_tokens == found.tokens - 3  # the first token is never predicted
    assert found.lengths == {"least": 4, "median": 4, "p95": 7, "most": 7}
    assert sum(count for _, _, count in found.histogram) == 3
    assert found.duplicates.within_examples == (("f:3", "f:1"),)


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([], ()),
        ([7], ((7, 7, 1),)),
        ([1, 2, 2, 4], ((1, 1, 1), (2, 2, 2), (3, 3, 0), (4, 4, 1))),
        ([3, 29], ((0, 4, 1), (5, 9, 0), (10, 14, 0), (15, 19, 0), (20, 24, 0), (25, 29, 1))),
    ],
)
def test_a_histogram_has_round_widths_and_loses_nothing(lengths, expected):
    assert histogram(lengths) == expected


def test_duplicates_between_training_and_held_out_rows_are_named():
    one = CompletionRow("p", "c", (), "a:1")
    found = duplicates([one, TextRow("t", "a:2")], [CompletionRow("p", "c", (), "b:9")])
    assert (found.within, found.between, found.between_examples) == (0, 1, (("b:9", "a:1"),))
    assert "1 of 1 evaluation rows are also training rows" in found.note()


@pytest.mark.parametrize(("rows", "judged", "asked"), [
    ([PreferenceRow("p", "a", "b", origin="t:1"), PreferenceRow("q", "a", "b", origin="t:2")],
     [PreferenceRow("p", "a", "c", origin="e:1"), PreferenceRow("r", "a", "b", origin="e:2"),
      PreferenceRow("q", "a", "b", origin="e:3")], (("e:1", "t:1"),)),
    ([CompletionRow("", "a", (), "t:1"), CompletionRow("q", "b", (), "t:2")],
     [CompletionRow("", "c", (), "e:1")], ()),  # nothing is asked
    ([*(CompletionRow("Tell a story.", str(n), (), f"t:{n}") for n in range(30)),
      CompletionRow("q", "b", (), "t:30")],
     [CompletionRow("Tell a story.", "x", (), "e:1"), CompletionRow("q", "c", (), "e:2")],
     (("e:2", "t:30"),)),  # an instruction is no question
    ([CompletionRow("Tell a story.", "a", (), "t:1")],
     [CompletionRow("Tell a story.", "x", (), "e:1")], ()),
    ([ChatRow((USER, ANSWER), "t:1"), ChatRow(({**USER, "content": "ho"}, ANSWER), "t:2")],
     [ChatRow((USER, {**ANSWER, "content": "ho"}), "e:1")], (("e:1", "t:1"),)),
    ([ClassificationRow("a", 1, "b", "t:1"), ClassificationRow("c", 1, "d", "t:2")],
     [ClassificationRow("a", 1, "e", "e:1"), ClassificationRow("a", 0, "b", "e:2")],
     (("e:2", "t:1"),)),
])  # fmt: skip
def test_prompts_that_are_learnt_and_scored_on_are_named(rows, judged, asked):
    found = duplicates(rows, judged)
    assert (found.asked, found.asked_examples) == (len(asked), asked)
    said = f"{len(asked)} of {len(judged)} evaluation rows have the prompt of training rows"
    assert (said in found.note(), "holdout_by: prompt" in found.note()) == (bool(asked),) * 2


def test_a_strangers_text_does_nothing_on_a_page(tokenizer):
    row = CompletionRow("<script>alert(1)</script>\u202e", "</pre><b onclick=x>", (), "<i>:1")
    page = preview_page("r", [preview(tokenizer, [row])])
    assert "<script>" not in page
    assert "<b onclick" not in page
    assert "<i>" not in page
    assert "\u202e" not in page
    assert "&lt;U+202E&gt;" in page
    assert "default-src &#39;none&#39;" in page


def test_what_is_not_read_and_refused_is_told(tokenizer):
    found = preview(tokenizer, [TextRow("abc", "f:1")])
    told = dict(facts(found))
    assert told["rows"] == "1 read, 1 rows used"
    assert "not read" not in told
    assert "refused" not in told
    rows = Rows([TextRow("abc", "f:1")], unread={"system": 1})
    seen = Seen(rows, rows, *([], Encoder(tokenizer, None).encode([], TrainSettings())[1]),
                tokenizer, None, lambda some: [], duplicates([], []))  # fmt: skip
    bad = stage_preview(seen, picks=1, seed=0, refused=Fault("E104", "too many"))
    told = dict(facts(bad))
    assert told["not read"] == "'system': columns that nobody looks at"
    assert told["refused"] == "a run would stop here: error[E104] too many"


def test_a_long_text_loses_its_middle_only():
    pieces = [Piece("a" * 60), Piece("b" * 60, learnt=True)]
    short = shortened(pieces, 40)
    assert [p.text[0] for p in short] == ["a", "\n", "b"]
    assert "80 characters are not shown" in short[1].text
    assert short[2] == Piece("b" * 20, learnt=True)
    assert shortened(pieces, 120) == pieces
