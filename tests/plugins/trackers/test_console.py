"""The console tracker: plain lines where nobody looks on, one moving line on a terminal."""

from __future__ import annotations

import io
import math
import subprocess
import sys
from pathlib import Path

import pytest
from llmft_trackers.console import Console
from llmft_trackers.console.live import composed
from llmft_trackers.console.numbers import duration, named, number
from llmft_trackers.console.phases import Phase

from llmft.api import Progress, RunInfo, StageInfo
from llmft.toolkit import wrapped

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
    assert "  on 900 rows, 12,000 tokens (3,000 trained on), in 20 steps" in lines
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


def test_scores_without_any_before_are_a_list(monkeypatch):
    out = io.StringIO()
    console = told(monkeypatch, out)
    console.scored("sft", "after", {"loss": math.nan})
    assert ["loss", "nan"] in [line.split() for line in out.getvalue().splitlines()]
    assert "before" not in out.getvalue()
    console.scored("sft", "before", {"loss": 2.0})
    console.scored("sft", "after", {"loss": 1.0, "f1": 0.5})
    assert ["f1", "-", "0.5000"] in [line.split() for line in out.getvalue().splitlines()]


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
    assert "quick failed: what it has written is in runs/quick/1" in out.getvalue()
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
    assert number(0.25) == "0.2500"
    assert number(12) == "12"
    assert number(123456.7) == "123,457"
    assert number(2e-5) == "2.00e-05"
    assert number(0.0) == "0.0000"
    assert number(math.inf) == "inf"
    assert duration(5.04) == "5.0 s"
    assert duration(65) == "1:05"
    assert duration(3_725) == "1:02:05"


@pytest.fixture
def clock(monkeypatch):
    """A monotonic clock that stands still until it is told to go on."""
    now = [1_000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    def wait(seconds: float) -> None:
        now[0] += seconds

    return wait


def lines_of(out: io.StringIO) -> list[str]:
    return [line for line in out.getvalue().splitlines() if line]


def test_a_phase_lasts_from_its_beginning_and_not_from_its_first_sign(monkeypatch, clock):
    out = io.StringIO()
    console = told(monkeypatch, out)
    console.note("before it")
    clock(18)
    console.progress(Progress("s", "sample", 18, 18))  # of one batch, its end is the first sign
    console.progress(Progress("s", "answer", 0, 4))
    clock(6)
    console.progress(Progress("s", "answer", 4, 4))
    clock(2)
    console.progress(Progress("s", "answer", 4, 4))  # once more, after training
    console.progress(Progress("s", "load the model", 0, 1))
    clock(90)
    console.progress(Progress("s", "load the model", 1, 1))
    assert lines_of(out)[1:] == [
        "[s] sample 18/18  in 18.0 s",
        "[s] answer 4/4  in 6.0 s",
        "[s] answer 4/4  in 2.0 s",
        "[s] load the model  in 1:30",
    ]


def test_time_left_follows_the_pace_since_the_first_sign(monkeypatch, clock):
    first = Progress("s", "train", 10, 20)  # the stage goes on after step 10
    phase = Phase.of(first, 1_000.0, 990.0)
    assert phase.left(first, 1_000.0) == ""
    assert phase.left(Progress("s", "train", 12, 20), 1_004.0) == "16.0 s left"
    assert phase.left(Progress("s", "train", 20, 20), 1_020.0) == ""


def test_scores_during_training_are_a_line_each_without_the_phases_that_found_them(monkeypatch):
    out = io.StringIO()
    console = told(monkeypatch, out)
    console.progress(Progress("s", "train", 1, 2))
    for phase in ("evaluate", "answer"):
        console.progress(Progress("s", phase, 0, 8))
        console.progress(Progress("s", phase, 8, 8))
    console.progress(Progress("s", "score", 1, 2, {"f1": 0.25, "loss": 1.5}, logged=True))
    assert lines_of(out) == ["[s] score 1/2  loss 1.5000  f1 0.2500"]


def test_a_phase_inside_another_does_not_end_it(monkeypatch, clock):
    out = io.StringIO()
    console = told(monkeypatch, out)
    console.progress(Progress("s", "train", 0, 2))
    clock(4)
    console.progress(Progress("s", "sample", 0, 8))
    clock(3)
    console.progress(Progress("s", "sample", 8, 8))
    console.progress(Progress("s", "train", 1, 2, {"reward": 0.5}, logged=True))
    clock(3)
    console.progress(Progress("s", "train", 2, 2, {"reward": 0.75}, logged=True))
    assert lines_of(out) == [
        "[s] sample 8/8  in 3.0 s",
        "[s] train 1/2  reward 0.5000  7.0 s left",
        "[s] train 2/2  reward 0.7500  in 10.0 s",
    ]


def test_off_a_terminal_a_long_phase_tells_now_and_then_how_far_it_is(monkeypatch, clock):
    out = io.StringIO()
    console = told(monkeypatch, out)
    for done in range(0, 229, 4):  # four minutes
        console.progress(Progress("dpo", "reference", done, 228))
        clock(4)
    assert lines_of(out) == [
        "[dpo] reference 32/228  3:16 left",
        "[dpo] reference 64/228  2:44 left",
        "[dpo] reference 96/228  2:12 left",
        "[dpo] reference 128/228  1:40 left",
        "[dpo] reference 160/228  1:08 left",
        "[dpo] reference 192/228  36.0 s left",
        "[dpo] reference 224/228  4.0 s left",
        "[dpo] reference 228/228  in 3:48",
    ]
    out.truncate(0)
    for done in range(0, 200, 10):  # no tenth of it is done before five minutes are over
        console.progress(Progress("dpo", "reference", done, 100_000))
        clock(20)
    assert len(lines_of(out)) == 1


def test_a_phase_of_seconds_has_one_line(monkeypatch, clock):
    out = io.StringIO()
    console = told(monkeypatch, out)
    for done in range(101):
        console.progress(Progress("s", "reference", done, 100))
        clock(0.2)
    assert lines_of(out) == ["[s] reference 100/100  in 20.0 s"]


PPO = {
    "loss": 0.1, "policy_loss": 0.01, "value_loss": 0.2, "approx_kl": 1e-5, "ratio": 1.0,
    "reward": 1.25, "score": 1.2, "kl": 0.375, "length": 23.0, "tokens_per_second": 1234.5,
    "grad_norm": 0.5, "learning_rate": 3e-4, "epoch": 0.5,
}  # fmt: skip


@pytest.mark.parametrize(("width", "line"), [
    (120, "[ppo] train 4/16  ━━━─────────  reward 1.2500  kl 0.3750  loss 0.1000  1,234 tokens/s"
          "  policy_loss 0.0100  1:38 left"),
    (200, "[ppo] train 4/16  ━━━─────────  reward 1.2500  kl 0.3750  loss 0.1000  1,234 tokens/s"
          "  policy_loss 0.0100  1:38 left"),
    (79, "[ppo] train 4/16  reward 1.2500  kl 0.3750  loss 0.1000  1:38 left"),
    (59, "[ppo] train 4/16  reward 1.2500  kl 0.3750  1:38 left"),
    (39, "[ppo] train 4/16  1:38 left"),
])  # fmt: skip
def test_the_moving_line_shows_what_matters_and_fits(width, line):
    shown = composed("[ppo] train 4/16", 0.25, named(PPO), "1:38 left", width)
    assert shown == line
    assert len(shown) <= width


@pytest.mark.parametrize("width", [40, 60, 80])
def test_nothing_breaks_within_a_word_a_path_or_a_number(monkeypatch, width):
    out = Terminal()
    console = told(monkeypatch, out)
    monkeypatch.setenv("COLUMNS", str(width))
    folder = Path("runs/quick/20261126-1f")
    console.run_started(RunInfo("quick", folder, {}, ("sft", "a-second-stage", "a-third-stage")))
    console.scored("sft", "before", {f"preference_metric_{n}": n / 7 for n in range(4)})
    console.stage_started(STAGE)
    console.progress(Progress("sft", "train", 20, 20, PPO, logged=True))
    console.note("a remark that is longer than a line of sixty columns, with a/path/in/it.yaml")
    console.scored("sft", "after", {f"preference_metric_{n}": n / 7 for n in range(4)})
    results = {name: trained(loss=(2.0, 1.0), reward=(0.5, 0.75)) for name in ("sft", "ppo")}
    console.stage_finished("sft", {"produces": "policy"})
    console.run_finished({"stages": {n: r | {"produces": "policy"} for n, r in results.items()}})
    lines = lines_of(out)
    assert max(map(len, lines)) <= width
    words = " ".join(lines).split()
    for word in ("runs/quick/20261126-1f/stages/sft", "a/path/in/it.yaml", "(3,000", "2.0000"):
        assert word in words
    assert "1,234 tokens/s" in out.getvalue()
    command = out.getvalue().rpartition("next: ")[2].replace("\\\n", "").split()
    assert command == ["llmft", "generate", str(folder), '"your', 'question"']


def test_a_word_that_is_too_long_for_a_line_has_one_for_itself():
    path = "runs/" + 50 * "x"
    assert wrapped(f"  stage sft done: policy in {path} (more)", 40) == [
        "  stage sft done: policy in", path, "    (more)",
    ]  # fmt: skip


CHAT = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who\nwrote it?"})


@pytest.mark.parametrize("prompt", [CHAT, [dict(turn) for turn in CHAT]])
def test_a_chat_prompt_is_shown_as_a_conversation(monkeypatch, prompt):
    """As it is given, and as a resumed run reads it back."""
    out = io.StringIO()
    console = told(monkeypatch, out)
    samples = [
        {"when": "before", "prompt": CHAT, "answer": "?\x1b[2J"},
        {"when": "after", "prompt": prompt, "answer": "Ann"},
    ]
    console.stage_finished("sft", {"samples": samples})
    assert lines_of(out)[:4] == [
        "system: Be brief.",
        "user: Who wrote it?",
        "  before: ?<U+001B>[2J",
        "  after:  Ann",
    ]


def test_of_a_long_conversation_the_last_turns_are_shown(monkeypatch):
    out = io.StringIO()
    console = told(monkeypatch, out)
    prompt = [{"role": "user", "content": f"turn {n}"} for n in range(5)]
    samples = [{"when": w, "prompt": prompt, "answer": w} for w in ("before", "after")]
    console.stage_finished("sft", {"samples": samples})
    assert lines_of(out)[:4] == [
        "(2 earlier turns)",
        "user: turn 2",
        "user: turn 3",
        "user: turn 4",
    ]


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
    from llmft_trackers.console.side_by_side import tables

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
        ["sft", "2.0000", "->", "0.0000"],
        ["stage", "prompts"],  # a column of zeros says nothing
        ["collect", "60"],
        ["collect-2", "61"],
        ["stage", "reward", "kl"],
        ["ppo", "-", "->", "0.5000", "0.0000", "->", "2.00e-05"],
        ["ppo-2", "0.5000", "->", "0.7500", "0.0000", "->", "1.0000"],
    ]


def test_a_table_that_is_too_wide_goes_on_below():
    from llmft_trackers.console.side_by_side import WIDTH, tables

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
