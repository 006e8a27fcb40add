"""Prompts as tokens: what is cut where the answer needs room, and what is refused."""

from __future__ import annotations

import pytest

from llmft.api import CompletionRow, PromptRow, TextRow
from llmft.api.errors import DataError
from llmft.api.rows import IGNORED
from llmft.api.train_settings import TrainSettings
from llmft.data.encoding import Encoder
from llmft.data.prompt_encoding import encode_prompts
from llmft.modeling.tiny_models import tiny_tokenizer

BOS = 256


def encoder(limit: int | None, *, begins: bool = False) -> Encoder:
    """Return an encoder of bytes; begins: every text begins with a token of its own, as Llama's."""
    tokenizer = tiny_tokenizer()
    made = Encoder(tokenizer, limit)
    if begins:
        tokenizer.bos_token = "</s>"
        assert tokenizer.bos_token_id == BOS
        made._ids = lambda texts: [[BOS, *text.encode()] for text in texts]
    return made


def prompts(rows, limit=16, new=6, *, begins=False, **settings):
    return encode_prompts(encoder(limit, begins=begins), rows, TrainSettings(**settings), new)


@pytest.mark.parametrize("begins", [False, True])
def test_a_prompt_too_long_loses_its_start_and_not_the_token_that_begins_every_text(begins):
    (prompt,), report = prompts([PromptRow("abcdefghijklmn", ("x",), "here:1")], begins=begins)
    kept = b"fghijklmn" if begins else b"efghijklmn"
    assert prompt.input_ids == ((BOS,) if begins else ()) + tuple(kept)
    assert prompt.labels == (IGNORED,) * 10
    assert (prompt.origin, prompt.answers, prompt.prompt) == ("here:1", ("x",), "abcdefghijklmn")
    assert report.counts == {"with the start of the prompt cut": 1}
    assert (report.rows, report.kept) == (1, 1)


@pytest.mark.parametrize(("length", "cut"), [(10, 0), (11, 1)])
def test_a_prompt_that_just_fits_is_whole(length, cut):
    (prompt,), report = prompts([PromptRow("a" * length)])
    assert len(prompt.input_ids) == 10
    assert sum(report.counts.values()) == cut


def test_without_a_maximal_length_nothing_is_cut():
    (prompt,), report = prompts([PromptRow("a" * 99)], limit=None)
    assert len(prompt.input_ids) == 99
    assert not report.counts


def test_d6_a_long_prompt_is_named_where_it_may_not_be_cut_and_dropped_where_that_is_asked_for():
    rows = [PromptRow("a" * 11, origin="here:7"), *[PromptRow("a")] * 30]
    with pytest.raises(DataError, match=r"E106.*here:7.* 11 tokens, and the answer leaves 10"):
        prompts(rows, on_long_row="fail")
    kept, report = prompts(rows, on_long_row="drop")
    assert (len(kept), report.counts) == (30, {"dropped, too long": 1})
    with pytest.raises(DataError, match="E104"):
        prompts(rows[:3], on_long_row="drop")


@pytest.mark.parametrize(("new", "fits"), [(14, True), (15, False)])
def test_answers_that_leave_no_two_tokens_for_a_prompt_are_refused(new, fits):
    rows = [PromptRow("abcd")]
    if fits:
        assert len(prompts(rows, new=new)[0][0].input_ids) == 2
    else:
        with pytest.raises(DataError, match=r"15 tokens leaves no room .* within 16"):
            prompts(rows, new=new)


def test_a_completion_is_asked_and_its_answer_is_right_where_no_others_are():
    rows = [CompletionRow("2+2?", " four ", (), "a:1"), CompletionRow("2+2?", " four", ("4", "IV"))]
    (one, other), _ = prompts(rows)
    assert (one.answers, other.answers) == (("four",), ("4", "IV"))
    assert bytes(one.input_ids) == b"2+2?"
    with pytest.raises(DataError, match=r"b:2.*TextRow is no prompt"):
        prompts([TextRow("a", "b:2")])
    with pytest.raises(DataError, match=r"E101.*c:3.*empty"):
        prompts([PromptRow("", (), "c:3")])
