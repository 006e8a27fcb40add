"""Rows as tokens: what is learnt, what is cut, what is refused."""

from __future__ import annotations

import pytest

from llmft.api import ChatRow, CompletionRow, PromptRow, TextRow
from llmft.api.errors import DataError
from llmft.api.train_settings import TrainSettings
from llmft.data.encoding import Encoder
from llmft.modeling.tiny_models import tiny_tokenizer

END = 256


def encode(rows, max_length=None, tokenizer=None, **settings):
    return Encoder(tokenizer or tiny_tokenizer(), max_length).encode(
        rows, TrainSettings(**settings)
    )


def test_only_the_completion_and_the_end_are_learnt():
    (row,), report = encode([CompletionRow("ab", "cd")])
    assert row.input_ids == (97, 98, 99, 100, END)
    assert row.labels == (-100, -100, 99, 100, END)
    assert row.n_labels == 3
    assert report.note() == ""


def test_plain_text_is_learnt_whole():
    (row,), _ = encode([TextRow("ab")])
    assert row.labels == row.input_ids == (97, 98, END)
    assert row.n_labels == 2  # nothing predicts the first token


def test_d11_special_words_in_a_users_text_stay_text():
    (row,), _ = encode([CompletionRow("a</s>", "b")])
    assert END not in row.input_ids[:-1]
    assert len(row.input_ids) == 1 + 4 + 1 + 1


def test_a_conversation_learns_every_assistant_turn():
    messages = (
        {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"},
        {"role": "user", "content": "so"}, {"role": "assistant", "content": "ok"},
    )  # fmt: skip
    tokenizer = tiny_tokenizer(chat=True)
    (row,), _ = encode([ChatRow(messages)], tokenizer=tokenizer)
    learnt = [i for i in row.labels if i != -100]
    assert tokenizer.decode(learnt) == "yo</s>ok</s>"  # nothing after the end of an answer
    assert row.labels.count(END) == 2
    assert row.labels[-1] == END


@pytest.mark.parametrize("opens", [" ", ":\n", ""])
def test_a_turn_is_learnt_from_where_its_prompt_ends_whatever_the_tokenizer_merges(opens):
    from llmft.api.model_settings import ModelSource
    from llmft.modeling.base_model import BaseModel

    tokenizer = BaseModel(ModelSource(path="embedded:model")).tokenizer
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}:OPENS{{ m.content }}{{ eos_token }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:OPENS{% endif %}"
    ).replace("OPENS", opens)
    asked = ({"role": "user", "content": "What is it"},)
    answer = {"role": "assistant", "content": "Paris is it"}
    (all_turns,), _ = encode([ChatRow((*asked, answer))], tokenizer=tokenizer)
    (last_turn,), _ = encode([CompletionRow(asked, answer["content"])], tokenizer=tokenizer)
    assert all_turns == last_turn
    learnt = [i for i in all_turns.labels if i != -100]
    assert tokenizer.decode(learnt) == answer["content"] + tokenizer.eos_token
    text = tokenizer.decode(all_turns.input_ids)
    assert text.endswith(f"assistant:{opens}Paris is it{tokenizer.eos_token}")


def test_a_prompt_of_messages_is_asked_as_the_template_says():
    tokenizer = tiny_tokenizer(chat=True)
    row = CompletionRow(({"role": "user", "content": "hi"},), "yo")
    (encoded,), _ = encode([row], tokenizer=tokenizer)
    prompt = Encoder(tokenizer, None).prompt_ids(row.prompt)
    assert list(encoded.input_ids[: len(prompt)]) == prompt
    assert tokenizer.decode(prompt) == "user: hi\nassistant: "
    assert encoded.labels[: len(prompt)] == (-100,) * len(prompt)


def test_a_conversation_without_a_template_is_refused():
    with pytest.raises(DataError, match="no chat template"):
        encode([CompletionRow(({"role": "user", "content": "hi"},), "yo")])


@pytest.mark.parametrize("template", ["{{ raise_exception('no') }}", "{% if %}", "{{ a.b.c }}"])
def test_a_template_that_fails_is_a_clear_error(template):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(DataError, match="the chat template refuses"):
        encode([CompletionRow(({"role": "user", "content": "hi"},), "yo")], tokenizer=tokenizer)


def test_d4_truncation_is_counted_and_a_lost_answer_is_a_dropped_row():
    rows = [CompletionRow("ab", "cd"), CompletionRow("abcdef", "g"), CompletionRow("a", "bcdef")]
    kept, report = encode(rows, max_length=4, max_dropped=0.5)
    assert [row.input_ids for row in kept] == [(97, 98, 99, 100), (97, 98, 99, 100)]
    assert report.counts == {"truncated": 2, "dropped, the prompt alone is too long": 1}
    assert "2 truncated (66.7%)" in report.note()


def test_d4_too_many_dropped_rows_stop_the_run():
    rows = [CompletionRow("a", "b")] * 8 + [CompletionRow("a" * 50, "b")] * 8
    with pytest.raises(DataError, match=r"8 of 16 rows would be dropped \(50.0%") as caught:
        encode(rows, max_length=20, on_long_row="drop")
    assert caught.value.faults[0].code == "E104"
    kept, _ = encode(rows, max_length=20, on_long_row="drop", max_dropped=0.5)
    assert len(kept) == 8


def test_d5_nothing_to_learn_is_an_error():
    with pytest.raises(DataError, match="no row has a trained-on token left"):
        encode([CompletionRow("a" * 50, "b")], max_length=10)


def test_d6_a_long_row_is_named_where_it_may_not_be_cut():
    rows = [CompletionRow("a", "b"), CompletionRow("a" * 50, "b", origin="rows.jsonl:7")]
    with pytest.raises(DataError, match=r"rows\.jsonl:7: the row has 52 tokens, more than 20"):
        encode(rows, max_length=20, on_long_row="fail")


def test_a_prompt_alone_cannot_be_learnt():
    with pytest.raises(DataError, match="x:1: a prompt alone"):
        encode([PromptRow("a", origin="x:1")])


@pytest.mark.parametrize("name", ["gpt2", "bert-base-uncased"])
def test_real_tokenizers_agree_between_asking_and_learning(real_assets, name):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(real_assets / "tokenizers" / name)
    encoder = Encoder(tokenizer, None)
    row = CompletionRow("Question: Who wrote Hamlet?\nAnswer:", " William Shakespeare")
    (encoded,), _ = encoder.encode([row], TrainSettings())
    prompt = encoder.prompt_ids(row.prompt)
    assert list(encoded.input_ids[: len(prompt)]) == prompt
    learnt = [i for i in encoded.labels if i != -100]
    assert "shakespeare" in tokenizer.decode(learnt).lower()
    assert "hamlet" not in tokenizer.decode(learnt).lower()


@pytest.mark.parametrize("completion", [" Paris", "Paris", "\nParis"])
def test_sentencepiece_style_tokenizers_keep_the_boundary(real_assets, completion):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(real_assets / "models" / "stories15M")
    encoder = Encoder(tokenizer, None)
    row = CompletionRow("Question: What is France's capital?\nAnswer:", completion)
    (encoded,), _ = encoder.encode([row], TrainSettings())
    prompt = encoder.prompt_ids(row.prompt)
    assert list(encoded.input_ids[: len(prompt)]) == prompt
    assert encoded.input_ids[-1] == tokenizer.eos_token_id
    text = tokenizer.decode(encoded.input_ids, skip_special_tokens=True)
    assert text == row.prompt + completion


def test_accents_that_a_tokenizer_composes_do_not_move_the_boundary():
    from tokenizers import normalizers

    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    row = CompletionRow("Ou\u0300 est-ce ? Re\u0301ponse : ", "Angoule\u0302me")
    (encoded,), _ = encode([row], tokenizer=tokenizer)
    learnt = bytes(i for i in encoded.labels if i not in (-100, END)).decode()
    assert learnt == "Angoul\u00eame"


def test_a_tokenizer_without_an_end_is_refused_where_answers_are_learnt():
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    assert encode([TextRow("ab")], tokenizer=tokenizer)[0]
    with pytest.raises(DataError, match="no end-of-text token"):
        encode([CompletionRow("ab", "cd")], tokenizer=tokenizer)


def test_special_tokens_that_plain_text_spells_are_refused_until_the_recipe_chooses():
    rows = [TextRow("one", "x:1"), TextRow("a</s>b", "x:2")]
    with pytest.raises(DataError, match="x:2: the text spells the special token '</s>'") as caught:
        encode(rows)
    assert "data.special_tokens: parse" in caught.value.faults[0].fix
    (parsed,), report = encode([TextRow("a</s>b", "x:2", "parse")])
    assert parsed.input_ids == parsed.labels == (97, END, 98, END)
    assert report.note() == ""
    (text,), report = encode([TextRow("a</s>b", "x:2", "text")])
    assert text.input_ids == (*b"a</s>b", END)
    assert report.note() == "rows with special tokens in their text, which stay text: 1"
    assert Encoder(tiny_tokenizer(), None).refusals(rows).keys() == {1}


def test_a_token_that_begins_every_text_is_there_once_where_the_text_spells_it_too(tmp_path):
    from tokenizers import processors

    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = "</s>"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        "</s> $A", special_tokens=[("</s>", END)]
    )
    for text in ("ab", "</s>ab"):
        (row,), _ = encode([TextRow(text, "", "parse")], tokenizer=tokenizer)
        assert row.input_ids == (END, 97, 98, END)


def test_turn_marks_that_are_no_tokens_of_the_tokenizer_are_counted():
    rows = [CompletionRow("<|im_start|>user", "b"), CompletionRow("a", "b")]
    _, report = encode(rows)
    assert report.note() == (
        "texts with '<|im_start|>', which is no token of this tokenizer and is read as letters: 1"
    )
