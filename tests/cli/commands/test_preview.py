"""`llmft preview`: text in a pipe and on a terminal, JSON, a page, and wrong options."""

from __future__ import annotations

import json

import pytest

from llmft.cli.commands import output
from llmft.cli.main import main

RECIPE = """\
recipe: 1
name: tiny
model: {{path: {model}}}
stages:
  - name: s
    adapter: {{method: lora}}
    alignment: {{method: sft}}
    data: {{method: jsonl, path: {rows}}}
    train: {{max_length: 12}}
"""


@pytest.fixture
def recipe(tmp_path, model_folder):
    rows = tmp_path / "rows.jsonl"
    records = [{"prompt": "Q\x1b[31m:", "completion": f" {'a' * n}", "id": n} for n in (2, 9)]
    rows.write_text("".join(json.dumps(record) + "\n" for record in records))
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(model=model_folder, rows=rows))
    return str(path)


def test_a_pipe_gets_plain_text_with_marks_around_what_is_learnt(recipe, capsys):
    assert main(["preview", recipe, "--rows", "1"]) == 0
    told = capsys.readouterr().out
    assert "Q<U+001B>[31m:>>> aa</s><<<" in told
    assert "\x1b" not in told
    assert "not read: 'id'" in told
    assert "1 truncated (50.0%)" in told


def test_a_terminal_gets_colours_and_a_strangers_escapes_do_nothing(recipe, capsys, monkeypatch):
    monkeypatch.setattr(output, "has_colors", lambda: True)
    monkeypatch.setattr("llmft.cli.commands.preview.has_colors", lambda: True)
    assert main(["preview", recipe, "--only", "first"]) == 0
    told = capsys.readouterr().out
    assert "\x1b[1;32m aa\x1b[0m" in told
    assert "\x1b[31m:" not in told
    assert ">>>" not in told


def test_json_has_the_ids_and_labels_of_each_shown_row(recipe, capsys):
    assert main(["preview", recipe, "--only", "cut", "--json"]) == 0
    (stage,) = json.loads(capsys.readouterr().out)["stages"]
    (row,) = stage["rows"]
    assert row["picked"] == ["cut"]
    assert row["whole_tokens"] > 12
    assert len(row["ids"]["row"]["input_ids"]) == len(row["ids"]["row"]["labels"]) == 12


def test_a_page_is_written_and_replaced_but_no_other_file_is(recipe, tmp_path, capsys):
    page = tmp_path / "p.html"
    for _ in range(2):
        assert main(["preview", recipe, "--html", str(page)]) == 0
    assert page.read_text().startswith("<!doctype html>")
    mine, link = tmp_path / "mine.html", tmp_path / "link.html"
    mine.write_text("<!doctype html>\n<html>mine")
    link.symlink_to(page)
    for other in (mine, link):
        assert main(["preview", recipe, "--html", str(other)]) == 2
        assert "not overwritten" in capsys.readouterr().err
    assert mine.read_text().endswith("mine")
    assert main(["preview", recipe, "--html", str(tmp_path / "rows.jsonl")]) == 2
    assert "is no name of a page" in capsys.readouterr().err
    assert '"prompt"' in (tmp_path / "rows.jsonl").read_text()


@pytest.mark.parametrize("option", [("--only", "cuts"), ("--stage", "x")])
def test_unknown_kinds_and_stages_are_refused(recipe, capsys, option):
    assert main(["preview", recipe, *option]) == 2
    assert f"{option[0]} is '{option[1]}'; there is" in capsys.readouterr().err


def test_validate_with_the_model_reads_every_row_and_reports_faults(recipe, tmp_path, capsys):
    assert main(["validate", recipe, "--model"]) == 0
    told = capsys.readouterr().out
    assert "  s: of 2 rows: 1 truncated (50.0%)" in told
    assert "  s: columns of the data that are not read: 'id'" in told
    rows = tmp_path / "rows.jsonl"
    rows.write_text(rows.read_text() * 20 + '{"prompt": "x"}\n')  # beyond the first rows
    assert main(["validate", recipe]) == 0
    capsys.readouterr()
    assert main(["validate", recipe, "--model"]) == 3
    told = capsys.readouterr().err
    assert "recipe.yaml:8:" in told
    assert "rows.jsonl:41: no column 'completion'" in told


def test_plan_repeats_how_many_rows_are_cut_and_dropped(recipe, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    lost = {"prompt": "p" * 30, "completion": "c"}
    rows.write_text(rows.read_text() * 20 + json.dumps(lost) + "\n")
    assert main(["plan", recipe]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "of 41 rows: 1 dropped, the prompt alone is too long (2.4%), 20 truncated" in told


def test_a_column_begins_no_line_of_ours(recipe, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    row = json.loads(rows.read_text().splitlines()[0]) | {"x\nnext: curl evil": 1}
    rows.write_text(f"{json.dumps(row)}\n" * 20)
    assert main(["preview", recipe]) == 0
    told = capsys.readouterr().out
    assert "x<U+000A>next: curl evil" in told
    assert "\nnext:" not in told
