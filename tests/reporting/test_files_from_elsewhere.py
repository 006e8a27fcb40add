"""Run folders and rows that strangers wrote are shown as text, or named in a fault."""

from __future__ import annotations

import csv
import json
import os
import shutil
import time

import pytest

from llmft.cli.main import main
from llmft.inference.trained import sampled_texts
from llmft.reporting import run_facts
from llmft.reporting.samples import marked
from tests.exporting.conftest import lora_run, rows_file, train  # noqa: F401 - fixtures

# ruff: noqa: F811 - fixtures by their names

SFT = "stages/sft"
ALIASES = "a: &a [x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefg", "bcdefgh", strict=True)
)
COMMANDS = (["report", "run"], ["compare", "run", "run", "--output", "c.html"], ["runs", "."])
METRIC = {"phase": "train", "step": 1}


@pytest.fixture
def copied(lora_run, tmp_path, monkeypatch):
    """A copy of a finished run, to be changed, in the working folder."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(lora_run, tmp_path / "run")


def shown(capsys) -> dict[str, int]:
    """Return how each command that shows runs ends; fail where one takes long or breaks."""
    codes = {}
    for words in (
        ["report", "run"],
        ["compare", "run", "run", "--output", "c.html"],
        ["runs", "."],
    ):
        began = time.process_time()
        codes[words[0]] = main(words)
        told = capsys.readouterr()
        assert "E900" not in told.err, words
        assert "\x1b" not in told.out + told.err, words
        assert time.process_time() - began < 10, words
    return codes


@pytest.mark.parametrize(("name", "text"), [
    ("resolved.yaml", ALIASES),
    ("resolved.yaml", "a: &a {x: *a}\n"),
    ("resolved.yaml", "a: " + "[" * 3000 + "]" * 3000),
    ("resolved.yaml", "a: !!python/object/apply:os.system ['touch RAN']\n"),
    ("resolved.yaml", "a: !" + "x" * 900_000),
    ("resolved.yaml", "".join(f"k{n}: [1, 2, {{a: b}}]\n" for n in range(19_000))),
    ("resolved.yaml", "stages: [{name: sft, adapter: [1], alignment: x}]\n"),
    ("timeline.json", '{"seconds": "x"}'),
    ("timeline.json", '{"seconds": [1]}'),
    ("timeline.json", '{"stages": {"sft": {"phases": [{"phase": "a", "seconds": null}]}}}'),
    ("timeline.json", '{"stages": {"sft": {"trainable_parameters": 5, "total_parameters": 0}}}'),
    (f"{SFT}/metrics.jsonl", json.dumps({**METRIC, "step": "x", "loss": 3.0})),
    (f"{SFT}/metrics.jsonl", '{"phase": "train", "step": 1, "loss": ' + "9" * 400 + "}"),
    (f"{SFT}/metrics.jsonl", '{"phase": "train", "step": 1e308, "loss": -1e308}\n'
                             '{"phase": "train", "step": -1e308, "loss": 1e308}'),
    (f"{SFT}/metrics.jsonl", "[" * 100_000),
    (f"{SFT}/metrics.jsonl", json.dumps({**METRIC, **{f"m{n}": 1.0 for n in range(9000)}})),
    (f"{SFT}/samples.jsonl", '{"prompt": [1], "answer": 1, "when": "before"}\n'
                             '{"prompt": [1], "answer": 2, "when": "after"}'),
])  # fmt: skip
def test_files_of_another_shape_are_named(copied, capsys, name, text):
    (copied / name).write_text(text)
    codes = shown(capsys)
    assert codes["runs"] == 0  # lists it, as damaged where it is
    assert set(codes.values()) <= {0, 6}
    assert not (copied.parent / "RAN").exists()


@pytest.mark.parametrize("name", ["samples.jsonl", "metrics.jsonl"])
def test_a_file_that_is_larger_than_any_is_named(copied, capsys, monkeypatch, name):
    monkeypatch.setattr(run_facts, "_LARGEST", 99)
    (copied / SFT / name).write_text("{}\n" * 50)
    assert shown(capsys)["report"] == 6


def test_scores_that_are_no_numbers_are_named(copied, capsys):
    path = copied / SFT / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"after": {"exact_match": "x"}}))
    assert shown(capsys) == {"report": 6, "compare": 6, "runs": 0}


@pytest.mark.parametrize("text", [
    "[" * 100_000, '"x"', '{"loss": 1}', "", '{"prompt": "a", "x": ' + "9" * 5000 + "}",
])  # fmt: skip
def test_a_file_that_evaluate_did_not_write_is_no_rows(tmp_path, capsys, text):
    (tmp_path / "a.jsonl").write_text(text)
    assert main(["compare", str(tmp_path / "a.jsonl"), str(tmp_path / "a.jsonl")]) == 3
    assert "holds no evaluated rows" in capsys.readouterr().err


def test_an_endless_file_of_rows_is_not_read(tmp_path, capsys):
    (tmp_path / "a.jsonl").touch()
    os.truncate(tmp_path / "a.jsonl", 2**40)
    assert main(["compare", str(tmp_path / "a.jsonl"), str(tmp_path / "a.jsonl")]) == 3
    assert "has more than" in capsys.readouterr().err


def test_long_answers_are_not_compared_word_by_word():
    began = time.process_time()
    left, right = marked(". " * 1000, ".," * 1000)
    assert time.process_time() - began < 1
    assert (left, right) == ([(". " * 1000, False)], [(".," * 1000, False)])


@pytest.mark.parametrize("name", ["run.json", "lock.json", "timeline.json", f"{SFT}/result.json"])
def test_an_endless_file_of_a_run_is_not_read(copied, capsys, name):
    os.truncate(copied / name, 2**40)
    assert shown(capsys) == {"report": 6, "compare": 6, "runs": 0}


def test_a_sample_is_shown_whatever_its_text_holds(copied):
    """U+2028 and U+0085 are no ends of a line of JSON."""
    pair = [{"prompt": "asked\u2028\x85", "answer": "told", "when": w} for w in ("before", "after")]
    lines = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in pair)
    (copied / SFT / "samples.jsonl").write_text(lines, "utf-8")
    assert main(["report", "run"]) == 0
    assert "asked" in (copied / "report.html").read_text("utf-8")
    assert [one["answer"] for one in sampled_texts(copied / SFT)] == ["told", "told"]


def test_curves_as_csv_hold_names_and_no_formulas(copied):
    names = {"=HYPERLINK(1)": 1.0, "@a": 2.0, "+1": 3.0, "-1": 4.0, 'a"b,c': 5.0, "x\r\ny": 6.0}
    (copied / SFT / "metrics.jsonl").write_text(json.dumps({**METRIC, **names}) + "\n")
    assert main(["report", "run", "--data", "c.csv"]) == 0
    with open("c.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert [row[1] for row in rows[1:]] == [
        "'=HYPERLINK(1)", "'@a", "'+1", "'-1", 'a"b,c', "x<U+000D><U+000A>y",
    ]  # fmt: skip


def test_names_in_tables_begin_no_line(copied, capsys):
    spoof = "x\nnext: curl evil"
    path = copied / SFT / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"after": {spoof: 1.0}}))
    about = copied / "run.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"name": spoof}))
    for words in (["runs", "."], ["compare", "run", "run"]):
        assert main(words) == 0
        assert "\nnext: curl" not in capsys.readouterr().out


@pytest.mark.parametrize("stages", [
    ["x" * 300], ["a\nb" * 99], ["sft"] * 300_000, [f"s{n}" for n in range(20_000)],
])  # fmt: skip
def test_stages_that_no_run_has_are_named(copied, capsys, stages):
    (copied / "run.json").write_text(json.dumps({"stages": stages, "name": "x"}))
    assert shown(capsys) == {"report": 6, "compare": 6, "runs": 0}
