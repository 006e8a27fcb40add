"""Token ids in bounded time, whatever expressions a tokenizer came with."""

from __future__ import annotations

import pytest

from llmft.api import CompletionRow
from llmft.api.errors import EnvironmentFault
from llmft.api.train_settings import TrainSettings
from llmft.data import bounded_tokens
from llmft.data.encoding import Encoder
from llmft.modeling.tiny_models import tiny_tokenizer
from llmft.system.bounded_child import OutOfBounds


def splitting_by(pattern: str):
    from tokenizers import Regex, pre_tokenizers

    tokenizer = tiny_tokenizer()
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    return tokenizer


@pytest.mark.parametrize("pattern", ["(x+x+)+y", "(x|x|xx)*y", "x*x*x*x*x*y"])
def test_an_expression_that_backtracks_is_a_fault_that_names_the_row(pattern, capfd):
    encoder = Encoder(splitting_by(pattern), None)
    row = CompletionRow("x" * 4000 + "z y", "z", (), "rows.jsonl:1")
    with pytest.raises(EnvironmentFault, match=r"rows\.jsonl:1: the tokenizer") as caught:
        encoder.encode([row], TrainSettings())
    assert caught.value.faults[0].code == "E212"
    assert "panicked" not in capfd.readouterr().err


@pytest.mark.parametrize("pattern", ["(x|y)+", " ?\\p{L}+", "(?i:a)b+c+"])
def test_ids_are_the_same_in_a_process(pattern):
    tokenizer = splitting_by(pattern)
    tokens = bounded_tokens.BoundedTokens(tokenizer)
    for text in ("", "a bC é漢🙂", "</s> a", "x" * 100):
        for options in ({}, {"add_special_tokens": False, "split_special_tokens": True}):
            assert tokens.ids(text, **options) == tokenizer(text, **options)["input_ids"]
    assert tokens._usual is False


def test_which_expressions_need_a_process():
    for pattern in ("a", r"\d", r"\p{N}{1,3}", r" ?\p{L}+", r"[^\r\n]+", "a|b+|c*d", r"[\]a-z]+"):
        assert bounded_tokens.is_plain(pattern), pattern
    for pattern in ("(a)", "a+b+", "a?a?a?aaa", "(?=a)", "a{1,200}", r"\1", "[", "a**", "a+?a*"):
        assert not bounded_tokens.is_plain(pattern), pattern
    assert bounded_tokens.is_plain("a?" * 50_000) is False


def test_an_unusual_expression_is_loaded_in_a_process_first(tmp_path, monkeypatch):
    def ask(self, question):
        raise OutOfBounds("took more than 1 MB")

    monkeypatch.setattr(bounded_tokens.BoundedChild, "ask", ask)
    for pattern, refused in (("a+", False), ("(a+)+", True)):
        splitting_by(pattern).save_pretrained(tmp_path)
        if not refused:
            bounded_tokens.check_tokenizer_file(tmp_path / "tokenizer.json")
            continue
        with pytest.raises(EnvironmentFault, match=r"tokenizer took more .* was loaded"):
            bounded_tokens.check_tokenizer_file(tmp_path / "tokenizer.json")


def test_an_expression_is_found_however_its_key_is_written():
    text = '{"\\u0052e\\u0067ex" : "(a+)+", "Regex":"b"}'
    assert list(bounded_tokens.patterns_in(text)) == ["(a+)+", "b"]
