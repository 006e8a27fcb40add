"""Preferences in every form become one: a prompt and two answers, ties and faults counted."""

from __future__ import annotations

import json

import pytest
from llmft_datasets.preference import Preference

from llmft.api.errors import DataError
from llmft.data.usable_rows import read_rows
from llmft.testing import DatasetContract


def dataset(tmp_path, records, columns=None, **settings):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    block = {"method": "preference", "path": str(path), "columns": columns or {}, **settings}
    return Preference(Preference.Config.model_validate(block))


def read(tmp_path, records, columns=None, **settings):
    return read_rows(dataset(tmp_path, records, columns, **settings), "train", None)


class TestPreference(DatasetContract):
    method_class = Preference
    configs = [
        {"path": "rows.jsonl"},
        {"path": "rows.jsonl", "columns": {"candidates": "all", "ranks": "ranks"}},
    ]
    bad_records = [
        {"prompt": "a", "chosen": "b"},
        {"prompt": "a", "chosen": " ", "rejected": "b"},
        {"prompt": "", "chosen": "a", "rejected": "b"},
        {"prompt": "a", "chosen": None, "rejected": "b"},
        {"chosen": "abc", "rejected": "xyz"},
        {"chosen": [{"role": "user", "content": "a"}], "rejected": "b"},
    ]

    def write(self, folder):
        path = folder / "rows.jsonl"
        row = {"prompt": "a", "chosen": "b", "rejected": "c"}
        path.write_text("".join(json.dumps(row) + "\n" for _ in range(2)))
        return {"path": str(path)}


def test_three_columns(tmp_path):
    (row,) = read(tmp_path, [{"prompt": "p", "chosen": "c", "rejected": "r"}]).rows
    assert (row.prompt, row.chosen, row.rejected, row.margin) == ("p", "c", "r", None)


def test_columns_may_be_renamed_or_templates(tmp_path):
    record = {"q": "why", "good": "so", "bad": "no", "gap": "1.5", "right": ["so", "thus"]}
    columns = {"prompt": "Q: {q}\nA:", "chosen": " {good}", "rejected": " {bad}", "margin": "gap",
               "answers": "right"}  # fmt: skip
    (row,) = read(tmp_path, [record], columns).rows
    assert (row.prompt, row.chosen, row.rejected) == ("Q: why\nA:", " so", " no")
    assert row.margin == 1.5
    assert row.answers == ("so", "thus")


HH = "\n\nHuman: Is it?\n\nAssistant: Which one?\n\nHuman: That.\n\nAssistant:"


def test_hh_texts_part_after_the_last_assistant(tmp_path):
    records = [{"chosen": f"{HH} It is.", "rejected": f"{HH} It is not."}]
    (row,) = read(tmp_path, records).rows
    assert (row.prompt, row.chosen, row.rejected) == (HH, " It is.", " It is not.")


def test_hh_texts_become_messages_for_a_chat_model(tmp_path):
    records = [{"chosen": f"{HH} It is.\n\nTruly.", "rejected": f"{HH} No."}]
    (row,) = read(tmp_path, records, chat=True).rows
    assert [(m["role"], m["content"]) for m in row.prompt] == [
        ("user", "Is it?"), ("assistant", "Which one?"), ("user", "That.")
    ]  # fmt: skip
    assert (row.chosen, row.rejected) == ("It is.\n\nTruly.", "No.")


@pytest.mark.parametrize(
    ("chosen", "rejected", "said"),
    [
        (f"{HH} a", HH.replace("Which", "What") + " a", "part before the last answer"),
        (f"{HH} a\n\nHuman: b", f"{HH} c", "the last turn is not the assistant's"),
        ("\n\nHuman: a\n\nAssistant: b", "\n\nHuman: z\n\nAssistant: b", "part before the last"),
    ],
)
def test_hh_texts_that_part_too_early_are_refused(tmp_path, chosen, rejected, said):
    with pytest.raises(DataError, match=said):
        dataset(tmp_path, []).row({"chosen": chosen, "rejected": rejected}, "x:1")


@pytest.mark.parametrize(
    ("chosen", "rejected", "parts"),
    [
        ("the cat sat", "the car sat", ("the", " cat sat", " car sat")),
        ("who? Ann", "who? Ann and Bob", ("who?", " Ann", " Ann and Bob")),
        ("who?\nAnn", "who?\nBob", ("who?", "\nAnn", "\nBob")),
    ],
)
def test_plain_texts_part_at_white_space(tmp_path, chosen, rejected, parts):
    records = [{"chosen": chosen, "rejected": rejected, "question": "?"}]
    (row,) = read(tmp_path, records, common_start=True).rows
    assert (row.prompt, row.chosen, row.rejected) == parts
    with pytest.raises(DataError, match=r"no column 'prompt' .*\(there is: question\)") as caught:
        read(tmp_path, records)
    assert "data.columns.prompt" in caught.value.faults[0].fix


PROMPT = "Q: Name a town.\nA:"


@pytest.mark.parametrize(("rule", "answers"), [
    ("strip", (" Ulm", " Bonn")), ("keep", (f"{PROMPT} Ulm", f"{PROMPT} Bonn")),
])  # fmt: skip
def test_a_prompt_inside_both_answers_is_refused_until_the_recipe_says_what_it_is(
    tmp_path, rule, answers
):
    twice = {"prompt": PROMPT, "chosen": f"{PROMPT} Ulm", "rejected": f"{PROMPT} Bonn"}
    with pytest.raises(DataError, match="both answers begin with the prompt") as caught:
        read(tmp_path, [twice])
    assert "repeated_prompt: strip" in caught.value.faults[0].fix
    (row,) = read(tmp_path, [twice], repeated_prompt=rule).rows
    assert (row.prompt, row.chosen, row.rejected) == (PROMPT, *answers)
    once = {**twice, "rejected": " Bonn"}  # one of them may quote it
    assert read(tmp_path, [once]).rows[0].chosen == twice["chosen"]


USER = {"role": "user", "content": "Who?"}


def said(text):
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize("prompt", [None, "Who?", [USER]])
@pytest.mark.parametrize("whole", [True, False])
def test_conversations(tmp_path, prompt, whole):
    if not whole and prompt is None:
        pytest.skip("the conversation would have no user's turn")
    before = [USER] if whole else []
    record = {"chosen": [*before, said("Ann")], "rejected": [*before, said("Bob")]}
    record |= {} if prompt is None else {"prompt": prompt}
    as_text = {
        key: value if key == "prompt" else json.dumps(value) for key, value in record.items()
    }
    for given in (record, as_text):  # JSON text, as CSV has it
        rows = read(tmp_path, [given])
        (row,) = rows.rows
        assert (row.prompt, row.chosen, row.rejected) == ((USER,), "Ann", "Bob")
        assert not rows.unread


def test_a_prompt_that_is_in_none_of_the_messages_is_named_as_unread(tmp_path):
    record = {"prompt": "Be rude.", "chosen": [USER, said("a")], "rejected": [USER, said("b")]}
    rows = read(tmp_path, [record])
    assert rows.rows[0].prompt == (USER,)
    assert set(rows.unread) == {"prompt"}
    rows = read(tmp_path, [record, {**record, "prompt": " Who? "}])
    assert not rows.unread


def test_the_scores_of_candidates_are_read(tmp_path):
    record = {"prompt": "p", "all": ["a", "b"], "scores": [1, 2], "more": 1}
    rows = read(tmp_path, [record], {"candidates": "all", "scores": "scores"})
    assert set(rows.unread) == {"more"}


@pytest.mark.parametrize(
    ("chosen", "rejected", "fault"),
    [
        ([USER, said("a")], "b", "is messages, the other is not"),
        ([USER, said("a"), USER], [USER, said("b"), USER], "part before the last answer"),
        ([USER, said("a"), USER, said("b")], [USER, said("b")], "part before the last answer"),
        ([USER, said("a"), USER], [USER, said("a"), {"role": "user", "content": "b"}],
         "the last turn is not the assistant's"),
    ],
)  # fmt: skip
def test_conversations_that_part_too_early_are_refused(tmp_path, chosen, rejected, fault):
    with pytest.raises(DataError, match=fault):
        dataset(tmp_path, []).row({"chosen": chosen, "rejected": rejected}, "x:1")


def test_a_record_without_its_candidates_is_no_pair(tmp_path):
    pair = {"prompt": "p", "chosen": "a", "rejected": "b"}
    with pytest.raises(DataError, match="the column 'all' is no list"):
        read(tmp_path, [pair], {"candidates": "all", "scores": "scores"})


def test_ranked_answers_become_pairs(tmp_path):
    record = {"prompt": "p", "all": ["a", "b", "c"], "ranks": [2, 1, 2]}
    found = read(tmp_path, [record], {"candidates": "all", "ranks": "ranks"})
    assert [(r.chosen, r.rejected, r.margin) for r in found.rows] == [
        ("b", "a", None), ("b", "c", None)
    ]  # fmt: skip
    assert found.left_out == {"ties": 1}
    assert "left out of 3 rows: 1 ties" in found.note()
    assert found.rows[0].origin.endswith("pairs.jsonl:1: answers 2 and 1")


def test_scored_answers_carry_their_margin(tmp_path):
    record = {"prompt": "p", "all": ["a", "b", "c"], "scores": [1.0, 4, 2.5]}
    found = read(tmp_path, [record], {"candidates": "all", "scores": "scores"})
    assert {(r.chosen, r.rejected): r.margin for r in found.rows} == {
        ("b", "a"): 3.0, ("c", "a"): 1.5, ("b", "c"): 1.5
    }  # fmt: skip


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        ({"prompt": "p", "all": ["a"], "ranks": [1]}, "'all' is no list of two or more"),
        ({"prompt": "p", "all": ["a", "b"], "ranks": [1]}, "'ranks' is no list of two or more"),
        ({"prompt": "p", "all": ["a", "b"], "ranks": [1, 2, 3]}, "'all' has 2 .* 'ranks' has 3"),
        ({"prompt": "p", "all": ["a", "b"], "ranks": [1, "x"]}, "no finite number"),
        ({"prompt": "p", "all": "ab", "ranks": [1, 2]}, "'all' is no list of two or more"),
    ],
)
def test_faulty_rankings_are_refused_by_their_line(tmp_path, record, fault):
    good = {"prompt": "p", "all": ["a", "b"], "ranks": [1, 2]}
    with pytest.raises(DataError, match=rf"pairs.jsonl:2: .*{fault}"):
        read(tmp_path, [good, record], {"candidates": "all", "ranks": "ranks"})


def test_d10_ties_and_same_answers_are_left_out_and_counted_even_where_bad_rows_fail(tmp_path):
    good = {"prompt": "p", "chosen": "a", "rejected": "b", "a": 2.0, "b": 1.0}
    records = [good, {**good, "a": 1.0}, {**good, "chosen": "b "}, {**good, "rejected": "a"}]
    found = read(tmp_path, records, {"chosen_score": "a", "rejected_score": "b"})
    assert [row.margin for row in found.rows] == [1.0]
    assert found.left_out == {"ties": 1, "pairs of the same answer twice": 2}


def test_a_pair_scored_the_wrong_way_is_bad(tmp_path):
    record = {"prompt": "p", "chosen": "a", "rejected": "b", "a": 1.0, "b": 3.0}
    with pytest.raises(DataError, match="the rejected answer is better, by 2"):
        read(tmp_path, [record], {"chosen_score": "a", "rejected_score": "b"})


def test_more_bad_rows_than_stated_stop_the_run(tmp_path):
    good = {"prompt": "p", "chosen": "a", "rejected": "b"}
    records = [good] * 20 + [{"prompt": "p"}] * 2
    with pytest.raises(DataError, match=r"more than max_bad_rows: 0.05.*pairs.jsonl:21") as caught:
        read(tmp_path, records, on_bad_row="skip")
    assert caught.value.faults[0].code == "E104"
    assert len(read(tmp_path, records, on_bad_row="skip", max_bad_rows=0.2).rows) == 20


def test_a_question_is_asked_as_the_rows_are(tmp_path):
    assert dataset(tmp_path, []).ask("Who?") == "Who?"
    assert dataset(tmp_path, [], chat=True).ask("Who?") == (USER,)


@pytest.mark.parametrize(
    "columns",
    [
        {"candidates": "all"},
        {"ranks": "r"},
        {"candidates": "a", "ranks": "r", "scores": "s"},
        {"chosen_score": "s"},
    ],
)
def test_columns_that_do_not_belong_together_are_refused(tmp_path, columns):
    with pytest.raises(ValueError, match=r"scores|belong together|ranks"):
        dataset(tmp_path, [], columns)


@pytest.mark.parametrize(
    "columns",
    [
        {},
        {"prompt": "Q: {q}", "chosen": " {a}\n{good}", "rejected": " {a}\n{bad}", "margin": "m"},
        {"candidates": "all", "ranks": "r"},
        {"candidates": "all", "scores": "s", "answers": "right"},
        {"chosen_score": "a", "rejected_score": "b"},
    ],
)
def test_the_examples_are_read_by_the_settings_they_are_for(tmp_path, columns):
    examples = dataset(tmp_path, [], columns).example_records()
    assert len(read(tmp_path, [dict(example) for example in examples], columns).rows) == 4
