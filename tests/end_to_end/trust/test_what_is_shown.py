"""A stranger's text does not act: on a terminal, in a pipe, in a log or in a card."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from llmft.api import RunInfo
from llmft.api.errors import DataError, RecipeError
from llmft.cli import main as cli
from llmft.cli.commands import output
from llmft.cli.main import main
from llmft.system.quiet import captured_output
from tests.acting_text import ACTS, acts


def test_an_answer_of_a_command_does_not_act_and_our_tables_keep_their_colours(monkeypatch, capsys):
    stolen = output._OUR_ESCAPE[:1] + "0" * 32 + "[31m"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    drawn = output.table(("a", f"b{ACTS}"), [("x", f"{ACTS}{stolen}")])
    shown = output.printable(f"{drawn}\n{ACTS}")
    assert "<U+001B>]0;owned<U+0007>" in shown
    left = shown.replace("\x1b[1m", "").replace("\x1b[0m", "")
    assert acts(left) == []
    cli._printed(ACTS)
    assert acts(capsys.readouterr().out) == []


@pytest.mark.parametrize("terminal", [True, False])
def test_errors_do_not_act(monkeypatch, terminal):
    err = io.StringIO()
    monkeypatch.setattr(err, "isatty", lambda: terminal)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys, "stderr", err)
    cli._reported(DataError("E101", f"row {ACTS}\nnext", fix=ACTS), False)
    several = RecipeError.of(list(DataError("E101", ACTS).faults * 2))
    cli._reported(several, False)
    assert "<U+001B>" in err.getvalue()
    assert acts(err.getvalue()) == []


def test_what_a_run_says_and_logs_does_not_act(monkeypatch, tmp_path):
    from llmft_trackers.console import Console

    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    console = Console(Console.Config(method="console"))
    console.run_started(RunInfo("r", tmp_path, {}, ("s",)))
    console.note(ACTS)
    sample = {"prompt": f"p{ACTS}", "answer": ACTS}
    console.stage_finished(
        "s", {"samples": [{**sample, "when": "before"}, {**sample, "when": "after"}]}
    )
    console.scored("s", "after", {f"m{ACTS}": 1.0})
    assert "<U+001B>" in out.getvalue()
    assert acts(out.getvalue()) == []
    with captured_output(tmp_path / "log.txt"):
        print(f"$(touch x) {ACTS} é", flush=True)
        import logging

        logging.getLogger("any").warning("row %s", ACTS)
    log = (tmp_path / "log.txt").read_bytes().decode()
    assert log.count("<U+001B>") == 4
    assert "é" in log
    assert acts(log) == []


def test_commands_show_names_and_rows_as_text(tmp_path, capsys):
    name = f"a{ACTS}".replace("\x00", "").replace("\x7f", "")
    for words in (
        ["run", str(tmp_path / name)],
        ["rank", str(tmp_path / name)],
        ["generate", str(tmp_path / name), "q"],
        [name],
        ["show", name],
        ["explain", name],
    ):
        assert main(words) != 0
        told = capsys.readouterr()
        assert acts(told.out + told.err) == [], words
    (tmp_path / "s.jsonl").write_text(
        json.dumps({"prompt": ACTS, "completions": [ACTS, "b"], "answers": []}) + "\n"
    )
    (tmp_path / "ratings").mkdir()
    (tmp_path / "ratings" / "x\x1b[31m.jsonl").write_text("")
    assert main(["rank", str(tmp_path / "s.jsonl"), "--status"]) == 0
    told = capsys.readouterr().out
    assert "is not named after a rater" in told
    assert acts(told) == []


def test_a_card_does_not_act():
    from llmft.hub import model_card

    assert "escaped(without_secrets(text))" in Path(model_card.__file__).read_text()
