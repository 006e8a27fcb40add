"""The console tracker: plain lines where nobody looks on, one moving line on a terminal."""

from __future__ import annotations

import io
import math
import subprocess
import sys
from pathlib import Path

import pytest
from llmft_trackers.console import Console, _duration, _left, _number

from llmft.api import Progress, RunInfo, StageInfo

STAGE = StageInfo(
    "sft", "lora", "sft", 1_000, 100_000, 900, 12_000, 3_000, 20, ("2 rows were cut",)
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def told(monkeypatch, out, **config) -> Console:
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    return Console(Console.Config(**config))


def a_run(console: Console) -> None:
    console.run_started(RunInfo("quick", Path("runs/quick/1"), {}, ("sft",)))
    console.scored("sft", "before", {"exact_match": 0.01, "loss": 5.0})
    console.stage_started(STAGE)
    for step in range(1, 21):
        logged = step % 10 == 0
        metrics = {"loss": 5 / step, "tokens_per_second": 1234.5} if logged else {}
        console.progress(Progress("sft", "train", step, 20, metrics, logged))
    for done in range(3):
        console.progress(Progress("sft", "evaluate", done, 2))
    console.scored("sft", "after", {"exact_match": 0.61, "loss": 1.5})
    console.note("half the answers are short")
    console.stage_finished("sft", {"produces": "policy"})
    console.run_finished({})


def test_piped_output_is_plain_lines_without_escape_codes(monkeypatch):
    out = io.StringIO()
    a_run(told(monkeypatch, out))
    text = out.getvalue()
    assert "\x1b" not in text
    assert "\r" not in text
    lines = text.splitlines()
    assert "  trains 1,000 of 100,000 parameters (1.00%)" in lines
    assert "  on 900 rows, 12,000 tokens (3,000 learnt), in 20 steps" in lines
    assert "  note: 2 rows were cut" in lines
    assert "note: half the answers are short" in lines


def test_piped_output_has_one_line_for_each_logged_step(monkeypatch):
    out = io.StringIO()
    a_run(told(monkeypatch, out))
    trained = [line for line in out.getvalue().splitlines() if "[sft] train" in line]
    assert len(trained) == 2
    assert trained[0].startswith("[sft] train 10/20  loss 0.5000  1,234 tokens/s")
    assert trained[0].endswith("left")
    evaluated = [line for line in out.getvalue().splitlines() if "[sft] evaluate" in line]
    assert len(evaluated) == 1


def test_the_score_table_shows_before_after_and_the_difference(monkeypatch):
    out = io.StringIO()
    a_run(told(monkeypatch, out))
    rows = [line.split() for line in out.getvalue().splitlines()]
    assert ["exact_match", "0.0100", "0.6100", "+0.6000"] in rows
    assert ["loss", "5.0000", "1.5000", "-3.5000"] in rows


def test_a_score_without_a_before_has_no_difference(monkeypatch):
    out = io.StringIO()
    console = told(monkeypatch, out)
    console.scored("sft", "after", {"loss": math.nan})
    assert ["loss", "-", "nan"] in [line.split() for line in out.getvalue().splitlines()]


def test_the_last_lines_say_where_everything_is_and_what_to_type_next(monkeypatch):
    out = io.StringIO()
    a_run(told(monkeypatch, out))
    assert out.getvalue().splitlines()[-2:] == [
        "quick done: everything is in runs/quick/1",
        'next: llmft generate runs/quick/1 "your question"',
    ]


@pytest.mark.parametrize(
    ("made", "command"),
    [
        (("policy", "reward_model"), 'llmft generate runs/quick/1 "your question"'),
        (("samples", "reward_model"), "llmft score runs/quick/1 texts.jsonl"),
        (("samples",), None),
    ],
)
def test_what_to_type_next_fits_what_the_run_made(monkeypatch, made, command):
    out = io.StringIO()
    console = told(monkeypatch, out)
    console.run_started(RunInfo("quick", Path("runs/quick/1"), {}, ("sft",)))
    console.run_finished({"stages": {kind: {"produces": kind} for kind in made}})
    last = out.getvalue().splitlines()[-1]
    assert last == f"next: {command}" if command else "next:" not in out.getvalue()


def test_a_failed_run_is_not_followed_by_what_to_type_next(monkeypatch):
    out = io.StringIO()
    console = told(monkeypatch, out)
    console.run_started(RunInfo("quick", Path("runs/quick/1"), {}, ("sft",)))
    console.run_finished({"status": "failed"})
    assert "quick failed: everything is in runs/quick/1" in out.getvalue()
    assert "next:" not in out.getvalue()


def test_a_terminal_gets_a_moving_line_and_its_cursor_back(monkeypatch):
    out = Terminal()
    a_run(told(monkeypatch, out))
    text = out.getvalue()
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") > 0
    assert "1/20" in text
    assert "[sft] train 20/20  loss 0.2500" in text


@pytest.mark.parametrize("why", ["config", "CI", "dumb"])
def test_a_terminal_can_be_told_to_print_plain_lines(monkeypatch, why):
    out = Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("TERM", "dumb" if why == "dumb" else "xterm")
    monkeypatch.setenv("CI", "1" if why == "CI" else "")
    a_run(Console(Console.Config(live=why != "config")))
    assert "\x1b" not in out.getvalue()


def test_a_narrow_terminal_does_no_harm(monkeypatch):
    out = Terminal()
    console = told(monkeypatch, out)
    monkeypatch.setenv("COLUMNS", "1")
    a_run(console)
    assert "quick done" in out.getvalue()


def test_it_writes_to_the_stream_that_it_found_when_it_was_made(monkeypatch):
    out = io.StringIO()
    console = told(monkeypatch, out)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    console.note("hello")
    assert out.getvalue() == "note: hello\n"


def test_numbers_read_well():
    assert _number(0.25) == "0.2500"
    assert _number(12) == "12"
    assert _number(123456.7) == "123,457"
    assert _number(2e-5) == "2.00e-05"
    assert _number(0.0) == "0.0000"
    assert _number(math.inf) == "inf"
    assert _duration(5.04) == "5.0 s"
    assert _duration(65) == "1:05"
    assert _duration(3_725) == "1:02:05"


def test_time_left_follows_the_pace_so_far():
    assert _left(Progress("s", "train", 5, 20), 10.0) == "30.0 s left"
    assert _left(Progress("s", "train", 0, 20), 10.0) == ""
    assert _left(Progress("s", "train", 20, 20), 10.0) == ""


def test_importing_the_trackers_imports_neither_torch_nor_rich():
    code = (
        "import sys, llmft_trackers.console, llmft_trackers.jsonl;"
        "print(sorted({'torch', 'rich', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_few_answers_are_shown_before_and_after():
    from llmft_trackers.console import _changed_answers

    samples = [
        {"when": "before", "prompt": "Question: Who?\nAnswer:", "answer": " word " * 50},
        {"when": "after", "prompt": "Question: Who?\nAnswer:", "answer": " Ann"},
        {"when": "after", "prompt": "never asked before", "answer": "x"},
    ]
    shown = _changed_answers(samples)
    assert shown[0] == "Question: Who? Answer:"
    assert shown[1].startswith("  before: word word")
    assert shown[1].endswith("...")
    assert shown[2] == "  after:  Ann"
    assert len(shown) == 3


def trained(**scores):
    before = {name: pair[0] for name, pair in scores.items() if pair[0] is not None}
    return {"steps": 3, "before": before, "after": {name: pair[1] for name, pair in scores.items()}}


def test_stages_that_are_measured_alike_stand_in_one_table():
    from llmft_trackers.side_by_side import tables

    assert tables({"only": trained(loss=(2.0, 1.0))}) == []
    lines = tables(
        {
            "sft": trained(loss=(2.0, 0.0)),
            "collect": {"steps": 0, "metrics": {"prompts": 60.0, "empty": 0.0}},
            "ppo": trained(reward=(None, 0.5), kl=(0.0, 2e-5)),
            "collect-2": {"steps": 0, "metrics": {"prompts": 61.0, "empty": 0.0}},
            "ppo-2": trained(reward=(0.5, 0.75), kl=(0.0, 1.0)),
            "nothing": {"steps": 3},
        }
    )
    assert [line.split() for line in lines if line] == [
        ["stage", "loss"],
        ["sft", "2.0000", ">", "0.0000"],
        ["stage", "prompts"],  # a column of zeros says nothing
        ["collect", "60"],
        ["collect-2", "61"],
        ["stage", "reward", "kl"],
        ["ppo", "-", ">", "0.5000", "0.0000", ">", "2.00e-05"],
        ["ppo-2", "0.5000", ">", "0.7500", "0.0000", ">", "1.0000"],
    ]


def test_a_table_that_is_too_wide_goes_on_below():
    from llmft_trackers.side_by_side import WIDTH, tables

    metrics = {f"a_rather_long_metric_{n}": (0.0, float(n)) for n in range(9)}
    lines = tables({"one": trained(**metrics), "two": trained(**metrics)})
    assert max(map(len, lines)) <= WIDTH
    heads = [line.split()[1:] for line in lines if line.startswith("stage")]
    assert len(heads) > 1
    assert [name for head in heads for name in head] == list(metrics)


def test_what_a_task_has_counted_stands_in_its_last_line(monkeypatch):
    out = io.StringIO()
    console = told(monkeypatch, out)
    metrics = {"pairs": 1200.0, "score": 0.25, "empty": 0.0}
    console.stage_finished("rank", {"produces": "preferences", "steps": 0, "metrics": metrics})
    assert out.getvalue() == "stage rank done: preferences (pairs 1,200, score 0.2500)\n"
