"""A stage's rows: bad ones counted, some held out, digests that follow the content."""

from __future__ import annotations

import json

import pytest
from llmft_datasets.chat import Chat
from llmft_datasets.jsonl import Columns, Jsonl
from llmft_datasets.triviaqa import TriviaQA

from llmft.api import PreferenceRow, PromptRow, TextRow
from llmft.api.errors import DataError
from llmft.data.held_out import hold_out
from llmft.data.mixed_rows import as_mixed
from llmft.data.usable_rows import Rows, read_rows


def dataset(tmp_path, records, cls=Jsonl, **settings):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return cls(cls.Config(method=cls.method, path=str(path), **settings))


GOOD = {"prompt": "p", "completion": "c"}


def test_d1_bad_rows_stop_the_run_and_are_shown(tmp_path):
    bad = [{"prompt": "p"}, {"prompt": 3.5, "completion": None}, {"prompt": "p", "completion": " "}]
    with pytest.raises(DataError) as caught:
        read_rows(dataset(tmp_path, [GOOD, *bad]), "train", None)
    said = caught.value.faults[0]
    assert said.code == "E101"
    assert "3 of 4 rows cannot be used" in said.what
    assert "rows.jsonl:2: no column 'completion' (there is: prompt)" in said.what
    assert "rows.jsonl:3: the column 'completion' is empty" in said.what
    assert "rows.jsonl:4: there is nothing to train on" in said.what


def test_d1_bad_rows_are_skipped_and_counted_where_the_recipe_says_so(tmp_path):
    found = read_rows(dataset(tmp_path, [GOOD, {}], on_bad_row="skip"), "train", None)
    assert len(found.rows) == 1
    assert found.note().startswith("skipped 1 of 2 rows (50.0%)")


BROKEN = {
    "rows.jsonl": '{"prompt": "p", "completion": "c"}\n{"prompt": "p", "prompt": "q"}\n{"pro\n[1]\n'
    '{"prompt": "\\ud800", "completion": "c"}\n{"prompt": "q", "completion": "d"}\n',
    "rows.json": '[{"prompt": "p", "completion": "c"}, {"prompt": "\\ud800", "completion": "c"},'
    ' {"prompt": "q", "completion": "d"}]',
    "rows.csv": "prompt,completion\np,c\np,c,c\np\nq,d\n",
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("columns", [{}, {"prompt": "a.b"}])
def test_d1_a_record_that_cannot_be_read_is_a_bad_row_like_others(tmp_path, name, columns):
    path = tmp_path / name
    path.write_text(BROKEN[name])
    broken = {"rows.jsonl": 4, "rows.json": 1, "rows.csv": 2}[name]

    def read(**settings):
        made = Jsonl(Jsonl.Config(method="jsonl", path=str(path), **settings))
        return read_rows(made, "train", None)

    with pytest.raises(DataError) as caught:
        read(columns=columns)
    if columns:  # no other row has them, either
        assert f"none of {2 + broken} rows" in caught.value.faults[0].what
        return
    fault = caught.value.faults[0]
    assert (fault.code, f"{broken} of {2 + broken} rows cannot" in fault.what) == ("E107", True)
    found = read(on_bad_row="skip")
    assert [row.prompt for row in found.rows] == ["p", "q"]
    assert (found.skipped, len(found.reasons)) == (broken, broken)
    assert all(str(path) in reason for reason in found.reasons)


@pytest.mark.parametrize(("by", "kept"), [("line", ["one", "three"]), ("paragraph", ["three"])])
def test_d1_a_text_that_is_no_utf8_is_a_bad_row_like_others(tmp_path, by, kept):
    path = tmp_path / "rows.txt"
    path.write_bytes(b"one\n\xff two\n\nthree\n")
    columns = {"text": "text"}
    block = {"method": "jsonl", "path": str(path), "columns": columns, "sample_by": by}
    found = read_rows(Jsonl(Jsonl.Config(**block, on_bad_row="skip")), "train", None)
    assert ([row.text for row in found.rows], found.skipped) == (kept, 1)
    with pytest.raises(DataError, match=f"1 of {1 + len(kept)} rows cannot be used: .*UTF-8"):
        read_rows(Jsonl(Jsonl.Config(**block)), "train", None)


def test_d1_three_reasons_are_told_in_a_line_and_all_of_them_are_kept(tmp_path):
    found = read_rows(dataset(tmp_path, [GOOD, *[{}] * 5], on_bad_row="skip"), "train", None)
    assert [f"rows.jsonl:{n}: no" in reason for n, reason in enumerate(found.reasons, 2)] == [
        True
    ] * 5
    assert found.note().count("no column") == 3
    assert found.note().endswith("(llmft preview names each)")


def test_a_reason_is_no_longer_than_a_few_lines_whatever_the_row_holds(tmp_path):
    bad = {"x" * 100_000: 1}
    found = read_rows(dataset(tmp_path, [GOOD, bad], on_bad_row="skip"), "train", None)
    assert (len(found.reasons[0]) < 600, "rows.jsonl:2" in found.reasons[0][:200]) == (True, True)


def test_d1_not_a_number_is_no_text(tmp_path):
    nothing = {"prompt": "p", "completion": float("nan")}
    with pytest.raises(DataError, match="the column 'completion' is empty"):
        read_rows(dataset(tmp_path, [GOOD, nothing]), "train", None)


def test_d2_columns_missing_everywhere_is_one_error(tmp_path):
    with pytest.raises(DataError, match=r"none of 2 rows can be used.*instruction") as caught:
        read_rows(dataset(tmp_path, [{"instruction": "a", "output": "b"}] * 2), "train", None)
    assert caught.value.faults[0].code == "E102"


def test_d3_no_rows_is_an_error(tmp_path):
    with pytest.raises(DataError, match="'train' has no rows"):
        read_rows(dataset(tmp_path, []), "train", None)


def test_columns_may_be_renamed_or_templates(tmp_path):
    record = {"q": "why", "a": "so", "all": ["so", "thus"]}
    columns = {"prompt": "Q: {q} {{x}}\n", "completion": "a", "answers": "all"}
    data = dataset(
        tmp_path, [record], columns=Jsonl.Config.model_fields["columns"].annotation(**columns)
    )
    (row,) = read_rows(data, "train", None).rows
    assert (row.prompt, row.completion, row.answers) == ("Q: why {x}\n", "so", ("so", "thus"))


def test_triviaqa_reads_the_hubs_schema_and_the_flat_one(tmp_path):
    hub = {"question": "Who?", "answer": {"value": "Ann", "aliases": ["Annie", "Ann"]}}
    flat = {"question": "Who?", "answer": "Ann", "aliases": ["Annie"]}
    rows = read_rows(dataset(tmp_path, [hub, flat], TriviaQA), "train", None).rows
    for row in rows:
        assert row.prompt == "Question: Who?\nAnswer:"
        assert row.completion == " Ann"
        assert row.answers == ("Ann", "Annie")


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "not a list, or it is empty"),
        ([{"role": "user", "content": "a"}], "no turn is the assistant's"),
        ([{"role": "king", "content": "a"}], "turn 0 has the unknown role 'king'"),
        ([{"role": "user", "content": None}], "turn 0 has no text"),
        ([{"role": "assistant", "content": "a"}], "the first turn is not the user's"),
        (
            [{"role": "user", "content": "a"}, {"role": "user", "content": "b"},
             {"role": "assistant", "content": "c"}],
            "two user turns follow each other",
        ),
    ],
)  # fmt: skip
def test_d9_conversations_are_checked_turn_by_turn(tmp_path, messages, said):
    with pytest.raises(DataError, match=said):
        read_rows(dataset(tmp_path, [{"messages": messages}], Chat), "train", None)


def test_sharegpt_conversations_are_understood(tmp_path):
    turns = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]
    data = dataset(tmp_path, [{"c": turns}], Chat, messages_column="c", learn="last")
    (row,) = read_rows(data, "train", None).rows
    assert row.prompt == ({"role": "user", "content": "hi"},)
    assert row.answers == ("yo",)


def test_whole_prompts_are_held_out():
    rows = [PreferenceRow(f"p{n // 3}", f"a{n}", "b", origin=f"f:{n}") for n in range(60)]
    rows += [TextRow("one"), TextRow("two")]
    stay, held = hold_out(rows, 10, 1, "prompt")
    texts = [row for row in held if isinstance(row, TextRow)]
    prompts = {row.prompt for row in held if not isinstance(row, TextRow)}
    assert len(held) == len(prompts) * 3 + len(texts)
    assert 10 <= len(held) <= 12
    assert sorted(map(id, stay + held)) == sorted(map(id, rows))
    assert not prompts & {row.prompt for row in stay if not isinstance(row, TextRow)}
    assert hold_out(rows, 10, 1, "prompt") == (stay, held) != hold_out(rows, 10, 2, "prompt")
    assert {row.prompt for row in hold_out(rows[:6], 5, 1, "prompt")[0]} in ({"p0"}, {"p1"})
    with pytest.raises(DataError, match=r"E103.*all rows have the same prompt"):
        hold_out(rows[:3], 1, 1, "prompt")


@pytest.mark.parametrize("seed", range(6))
def test_a_prompt_of_many_rows_is_not_held_out_for_a_few(seed):
    many = [PromptRow("many", origin=f"f:{n}") for n in range(60)]
    rows = many + [PromptRow(f"p{n // 2}", origin=f"g:{n}") for n in range(40)]
    _, held = hold_out(rows, 0.1, seed, "prompt")
    assert len(held) == 10
    assert len(hold_out(rows, 0.11, seed, "prompt")[1]) == 12
    assert {row.prompt for row in hold_out([*many, rows[60]], 5, seed, "prompt")[1]} == {"p0"}


def test_held_out_rows_leave_the_training_rows():
    stay, held = hold_out(list(range(100)), 0.1, seed=1)
    assert len(held) == 10
    assert sorted(stay + held) == list(range(100))
    assert hold_out(list(range(100)), 0.1, seed=1) == (stay, held)
    assert hold_out(list(range(100)), 0.1, seed=2) != (stay, held)
    assert hold_out(list(range(100)), 10, seed=1) == (stay, held)
    assert len(hold_out(list(range(100)), 1, seed=1)[1]) == 1
    assert len(hold_out(list(range(100)), 99, seed=1)[0]) == 1
    with pytest.raises(DataError, match="takes 100 rows of 100, and none is left"):
        hold_out(list(range(100)), 100, seed=1)


def test_a_source_of_a_mixture_has_its_rows_as_often_as_the_mixture():
    a, b, c = (TextRow(name, origin=name) for name in "abc")
    mixed = as_mixed(Rows([b, a, b, c, b], sources={"one": Rows([a, b]), "other": Rows([c])}))
    assert {name: part.rows for name, part in mixed.sources.items()} == {
        "one": [b, a, b, b],
        "other": [c],
    }
    assert mixed.rows == [b, a, b, b, c]  # as the rows of sources stand, one after another


def test_the_digest_follows_the_rows_not_their_place(tmp_path):
    one = read_rows(dataset(tmp_path, [GOOD]), "train", None)
    (tmp_path / "else").mkdir()
    two = read_rows(dataset(tmp_path / "else", [GOOD]), "train", None)
    other = read_rows(dataset(tmp_path, [{**GOOD, "prompt": "q"}]), "train", None)
    assert one.digest == two.digest != other.digest


@pytest.mark.parametrize(
    ("cls", "settings"),
    [
        (Jsonl, {}),
        (Jsonl, {"columns": Columns(prompt="Q: {q} ({hint})", completion="a", answers="all")}),
        (Jsonl, {"columns": Columns(text="{title}: {body}")}),
        (Chat, {"messages_column": "turns"}),
        (Chat, {"learn": "last"}),
        (TriviaQA, {}),
    ],
)
def test_every_data_set_reads_its_own_examples(cls, settings):
    data = cls(cls.Config(method=cls.method, path="nowhere.jsonl", **settings))
    records = data.example_records()
    assert len(records) == 4
    for record in records:
        data.row(json.loads(json.dumps(record)), "here")
