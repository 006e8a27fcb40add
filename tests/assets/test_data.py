import json
import subprocess
import sys
from collections import Counter

import pytest

from llmft.api.text_metrics import normalize_answer as normalize
from llmft.assets import available, locate
from llmft.assets.facts import load_facts
from llmft.assets.make_data import SEED, write_data
from llmft.assets.manners import SAID
from llmft.assets.remarks import UNWELCOME, WELCOME
from llmft.assets.trivia import split

DATA = [name for name in available() if name.startswith("data/")]


def rows(name):
    text = locate(f"data/{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("name", DATA)
def test_committed_data_is_what_the_seed_makes_byte_for_byte(name, made):
    assert (made / name.removeprefix("data/")).read_bytes() == locate(name).read_bytes()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_data(SEED, folder)
    return folder


def test_another_seed_makes_another_split():
    assert set(split(SEED + 1)[1]) != set(split(SEED)[1])


def test_held_out_facts_are_never_asked_in_training():
    train, held_out = split(SEED)
    assert set(train).isdisjoint(held_out)
    assert len(train) + len(held_out) == len(load_facts())
    asked = {row["question"] for row in rows("trivia_train")}
    assert asked.isdisjoint(row["question"] for row in rows("trivia_eval"))
    eval_prompts = {f"Question: {row['question']}\nAnswer:" for row in rows("trivia_eval")}
    assert {row["prompt"] for row in rows("preferences_eval")} <= eval_prompts
    for name in ("preferences_train", "prompts"):
        assert eval_prompts.isdisjoint(row["prompt"] for row in rows(name))


def test_eval_covers_every_relation_with_styles_seen_in_training():
    assert 300 <= len(rows("trivia_eval")) <= 400

    def relations(name):
        return {row["question_id"].rsplit("-", 1)[0] for row in rows(name)}

    every = {fact.relation for fact in load_facts()}
    assert relations("trivia_eval") == relations("trivia_train") == every


@pytest.mark.parametrize("name", ["trivia_train", "trivia_eval"])
def test_trivia_rows_have_the_hub_schema(name):
    seen = set()
    for row in rows(name):
        answer = row["answer"]
        assert list(row) == ["question", "question_id", "question_source", "answer"]
        assert row["question"].endswith("?")
        assert row["question_source"] == "llmft"
        assert answer["aliases"][0] == answer["value"]
        assert answer["normalized_value"] == normalize(answer["value"]) != ""
        assert set(answer["normalized_aliases"]) == set(map(normalize, answer["aliases"]))
        assert answer["type"] == "FreeForm"
        assert answer["matched_wiki_entity_name"] == ""
        seen.add(row["question_id"])
    assert len(seen) == len(rows(name))


@pytest.mark.parametrize(("name", "count"), [("train", 1200), ("eval", 300)])
def test_preferences_reject_what_is_wrong_hedging_or_rambling(name, count):
    pairs = rows(f"preferences_{name}")
    assert len(pairs) == count
    assert {pair["kind"] for pair in pairs} == {"wrong", "hedging", "rambling"}
    for pair in pairs:
        assert list(pair) == ["prompt", "chosen", "rejected", "kind"]
        assert pair["prompt"].startswith("Question: ")
        assert pair["prompt"].endswith("?\nAnswer:")
        assert pair["chosen"][0] == pair["rejected"][0] == " "
        assert normalize(pair["chosen"]) != normalize(pair["rejected"])


def test_a_wrong_answer_is_never_an_accepted_one():
    accepted = {
        f"Question: {row['question']}\nAnswer:": row["answer"]["normalized_aliases"]
        for row in rows("trivia_train") + rows("trivia_eval")
    }
    for pair in rows("preferences_train") + rows("preferences_eval"):
        if pair["kind"] == "wrong":
            assert normalize(pair["rejected"]) not in accepted[pair["prompt"]]


def test_remarks_are_said_equally_often_and_paired_one_of_each_kind():
    train, held_out = rows("remarks_train"), rows("remarks_eval")
    assert {row["prompt"] for row in train}.isdisjoint(row["prompt"] for row in held_out)
    for part in (train, held_out):
        said = Counter(row["said"] for row in part)
        assert set(said) == {*WELCOME, *UNWELCOME}
        assert max(said.values()) - min(said.values()) <= 1
        for row in part:
            assert row["welcome"] in WELCOME
            assert row["unwelcome"] in UNWELCOME
            assert row["answer"] in row["aliases"]


def test_manners_are_equally_common_and_one_of_them_is_the_plain_answer():
    train, held_out = rows("manners_train"), rows("manners_eval")
    assert {row["prompt"] for row in train}.isdisjoint(row["prompt"] for row in held_out)
    for part in (train, held_out):
        said = Counter(
            way for row in part for way in SAID if way.replace("{a}", row["answer"]) == row["said"]
        )
        assert said.total() == len(part)
        assert set(said) == set(SAID)
        assert max(said.values()) - min(said.values()) <= 1
    assert not any("\n" in row["said"] for row in train)  # a token the model has never seen


def test_prompts_carry_their_accepted_answers():
    for row in rows("prompts"):
        assert list(row) == ["prompt", "answer", "aliases"]
        assert row["answer"] in row["aliases"]


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Beatles", "beatles"),
        ("Washington, D.C.", "washington d c"),
        ("N'Djamena", "n djamena"),
        ("a_snake", "snake"),
        ("+33", "33"),
        ("Theodore", "theodore"),
    ],
)
def test_normalize_follows_the_official_scorer(text, normal):
    assert normalize(text) == normal


def test_locate_names_what_there_is():
    assert all(locate(name).exists() for name in available())
    with pytest.raises(ValueError, match=r"'modle' \(have: model, data/trivia_train\.jsonl"):
        locate("modle")


def test_making_data_imports_no_torch():
    code = "import sys, llmft.assets.make_data; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
