"""`num_samples` draws rows by their number; `replace` writes texts in columns otherwise."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from llmft_datasets.jsonl import Jsonl
from llmft_datasets.mix import Mix
from pydantic import ValidationError

from llmft.api.errors import DataError
from llmft.api.method_settings import Replacement
from llmft.data.stage_rows import check_rows, stage_rows
from llmft.data.usable_rows import read_rows
from llmft.recipes.recipe import Stage
from tests.every_setting import Case, Lab, check, without_case


def data(folder, rows, **settings):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Jsonl(Jsonl.Config.model_validate({"method": "jsonl", "path": str(path), **settings}))


def numbered(folder, count, **settings):
    rows = [{"prompt": "p", "completion": str(number)} for number in range(count)]
    return data(folder, rows, **settings)


def stage(**more):
    block = {"name": "s", "adapter": {"method": "lora"}, "alignment": {"method": "sft"}}
    return Stage.model_validate(block | more)


def answers(rows):
    return [row.completion for row in rows.rows]


def test_a_smaller_number_is_drawn_without_repeats_by_the_seed(tmp_path):
    dataset = numbered(tmp_path, 50, num_samples=20)
    one, other = (answers(stage_rows(stage(), dataset, seed)[0]) for seed in (1, 2))
    assert len(set(one)) == len(set(other)) == 20
    assert one != other
    assert one == answers(stage_rows(stage(), dataset, 1)[0])
    assert one != [str(number) for number in range(20)]  # as limit would take them


def test_a_larger_number_takes_all_rows_in_whole_passes_and_draws_the_rest(tmp_path):
    found, _ = stage_rows(stage(), numbered(tmp_path, 7, num_samples=17), 1)
    counts = Counter(answers(found))
    assert len(found.rows) == 17
    assert sorted(counts.values()) == [2, 2, 2, 2, 3, 3, 3]
    found, _ = stage_rows(stage(), numbered(tmp_path, 7, num_samples=14), 1)
    assert set(Counter(answers(found)).values()) == {2}


@pytest.mark.parametrize(("rows", "number"), [(10, 40), (40, 10)])
@pytest.mark.parametrize("holdout", [0.2, 2])
def test_held_out_rows_are_among_the_number_and_never_trained_on(tmp_path, rows, number, holdout):
    dataset = numbered(tmp_path, rows, num_samples=number)
    train, held = stage_rows(stage(evaluate={"holdout": holdout}), dataset, 3)
    assert len(held.rows) == 2
    assert len(train.rows) + len(held.rows) == number
    assert not set(answers(train)) & set(answers(held))


def test_each_source_draws_its_own_number(tmp_path):
    path = numbered(tmp_path, 6).config.path
    sources = [
        {"method": "jsonl", "path": path, "num_samples": number, "name": name}
        for name, number in (("few", 2), ("many", 15))
    ]
    config = Mix.Config.model_validate(
        {"method": "mix", "sources": [Jsonl.Config.model_validate(one) for one in sources]}
    )
    dataset = Mix(config)
    dataset.sources = [Jsonl(one) for one in config.sources]
    asked = stage(data=config, evaluate={"holdout": 2})
    train, held = stage_rows(asked, dataset, 1)
    assert len(train.rows) + len(held.rows) == 17
    assert len(train.sources["few"].rows) + len(train.sources["many"].rows) == 15


def test_rows_that_are_left_out_are_not_among_the_number(tmp_path):
    from llmft.assets.tiny_tokenizer import tiny_tokenizer
    from llmft.data.encoding import Encoder

    rows = [{"prompt": "a" * (1 + 200 * (n % 2)), "completion": str(n)} for n in range(40)]
    dataset = data(tmp_path, rows, num_samples=15, drop={"longer_than": 50})
    train, _ = stage_rows(stage(), dataset, 1, lambda: Encoder(tiny_tokenizer(), None))
    assert len(set(answers(train))) == 15
    assert all(int(answer) % 2 == 0 for answer in answers(train))


def test_streamed_rows_are_not_drawn_by_their_number(tmp_path):
    with pytest.raises(ValidationError, match="num_samples draws from all of the data"):
        numbered(tmp_path, 3, num_samples=2, streaming=True)


TOLD = [{"prompt": "to whom to", "completion": "c", "other": None}]


def said(block, lab):
    dataset = data(lab.folder, TOLD, replace=[block.model_dump()])
    try:
        return [row.prompt for row in read_rows(dataset, "train", None).rows]
    except DataError as error:
        return error.faults[0].code


BASE = {"column": "prompt", "text": "to", "by": "at"}
REPLACEMENT = {
    "column": Case("completion", said, ["to whom to"], also={"text": "to", "by": "at"}),
    "text": Case("whom", said, ["to at to"], also={"column": "prompt", "by": "at"}),
    "by": Case("", said, [" whom "], also={"column": "prompt", "text": "to"}),
    "at": Case("start", said, ["at whom to"], also=BASE, was=["at whom at"]),
}


@pytest.mark.parametrize("name", REPLACEMENT)
def test_a_setting_of_a_replacement_acts(name, tmp_path, monkeypatch):
    check(Replacement, name, REPLACEMENT[name], Lab(tmp_path, monkeypatch))


def test_every_setting_of_a_replacement_has_a_case():
    assert without_case(Replacement, REPLACEMENT) == set()


def test_replacements_are_made_one_after_the_other_before_rows_are_dropped(tmp_path):
    replace = [BASE, {"column": "prompt", "text": "at whom", "by": "here", "at": "start"}]
    dataset = data(tmp_path, TOLD * 2, replace=replace)
    assert [row.prompt for row in read_rows(dataset, "train", None).rows] == ["here at"] * 2
    where = [{"column": "prompt", "equals": "here at"}]
    dropping = data(tmp_path, TOLD, replace=replace, drop={"where": where})
    with pytest.raises(DataError, match="no rows"):
        read_rows(dropping, "train", None)


@pytest.mark.parametrize(("column", "said"), [("nope", "no column 'nope'"), ("n", "no text")])
def test_a_column_that_holds_no_text_is_a_bad_row(tmp_path, column, said):
    rows = [{"prompt": "p", "completion": "c", "n": 3}]
    dataset = data(tmp_path, rows, replace=[{"column": column, "text": "a", "by": "b"}])
    for look in (lambda: read_rows(dataset, "train", None), lambda: check_rows(dataset, stage())):
        with pytest.raises(DataError, match=said):
            look()


def test_a_null_stays_null(tmp_path):
    dataset = data(tmp_path, TOLD, replace=[{"column": "other", "text": "a", "by": "b"}])
    assert len(read_rows(dataset, "train", None).rows) == 1
