"""A run as its folder tells it now: phase, time left, curves in a line; and folders from others."""

from __future__ import annotations

import json
import os
import shutil
import socket
from pathlib import Path

import pytest

from llmft.api.errors import CheckpointError
from llmft.cli.main import main
from llmft.reporting.watching import PROGRESS, look, shown_curves, sparkline
from llmft.runs.locking import NAME as LOCK
from llmft.runs.locking import boot_id
from tests.exporting.conftest import lora_run, rows_file, train  # noqa: F401 - fixtures

# ruff: noqa: F811 - fixtures by their names
TOLD = {"stage": "sft", "phase": "train", "done": 30, "total": 100, "first": 10,
        "began": 1000.0, "at": 1040.0, "metrics": {"loss": 2.5}}  # fmt: skip


@pytest.fixture
def running(lora_run, tmp_path) -> Path:
    """A copy of a run, as if this process were in the middle of its training."""
    folder = tmp_path / lora_run.name
    shutil.copytree(lora_run, folder)
    (folder / "stages/sft/result.json").unlink()
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "boot_id": boot_id()}
    (folder / LOCK).write_text(json.dumps(holder))
    (folder / PROGRESS).write_text(json.dumps(TOLD) + "    ")
    return folder


def test_a_running_run_tells_its_phase_and_the_time_left(running):
    seen = look(running, now=1050.0)
    assert seen.runs
    assert seen.phase is not None
    assert (seen.phase.stage, seen.phase.name, seen.phase.done) == ("sft", "train", 30)
    # 20 units took 40 seconds, 70 are left, and the last was told 10 seconds ago.
    assert seen.phase.left == 70 * 2 - 10
    assert look(running, now=9999.0).phase.left == 0.0
    (running / PROGRESS).write_text(json.dumps(TOLD | {"done": 10}))
    assert look(running, now=1050.0).phase.left is None


def test_a_finished_run_has_no_phase(lora_run):
    seen = look(lora_run)
    assert not seen.runs
    assert seen.phase is None
    assert json.loads((lora_run / PROGRESS).read_text())["done"] > 0


@pytest.mark.parametrize("text", [
    "", "{", "[]", "null", "3", "[" * 50_000, "\xff", "x" * 70_000, "{}",
    json.dumps(TOLD | {"done": "x"}), json.dumps(TOLD | {"done": -1}),
    json.dumps(TOLD | {"began": None}), json.dumps(TOLD | {"at": True}),
    json.dumps(TOLD | {"metrics": {"loss": "x"}}), json.dumps(TOLD | {"stage": 7}),
    json.dumps(TOLD | {"at": 1e308}), json.dumps(TOLD | {"total": 10**400}),
])  # fmt: skip
def test_a_progress_file_of_another_form_is_none(running, text):
    (running / PROGRESS).write_text(text, "utf-8")
    assert look(running).phase is None


def test_a_pipe_in_its_place_is_refused(running):
    (running / PROGRESS).unlink()
    os.mkfifo(running / PROGRESS)
    assert main(["watch", str(running), "--once"]) == 8


def test_a_sparkline_has_the_means_of_its_stretches():
    points = [(float(n), float(n)) for n in range(8)]
    assert sparkline(points, 8) == "▁▂▃▄▅▆▇█"
    assert sparkline(points, 4) == "▁▃▆█"
    assert sparkline(points, 100) == "▁▂▃▄▅▆▇█"
    assert sparkline(points, 8, plain=True) == "_.-=+*#@"
    assert sparkline(points[:1], 8) == "▁"
    assert sparkline([(0, 3.0), (1, 3.0)], 8) == "▁▁"
    assert sparkline([(0, -1.7e308), (1, 1.7e308)], 8) == "▁█"


def test_what_says_most_comes_first_and_rewards_are_among_it(running):
    lines = [
        {"stage": "sft", "step": n, "phase": "train", "zeta": 1.0, "kl": n / 10, "reward": n,
         "loss": 3.0 - n, "epoch": n / 9, "grad_norm": 1.0}
        for n in (1, 2, 3)
    ]  # fmt: skip
    (running / "stages/sft/metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    (stage,) = look(running).stages
    names = [name for name, _ in shown_curves(stage)]
    assert names == ["loss", "grad_norm", "reward", "kl", "zeta"]


def test_the_command_shows_it_once(running, lora_run, capsys):
    assert main(["watch", str(running), "--once"]) == 0
    told = capsys.readouterr().out
    assert "tiny: running" in told
    assert "[sft] train 30/100" in told
    for name in ("loss", "learning_rate", "grad_norm"):
        assert f"\n{name} " in told
    assert main(["watch", str(lora_run)]) == 0
    told = capsys.readouterr().out
    assert "tiny: finished" in told
    assert "[sft] lora x sft: done; loss " in told
    assert main(["watch", str(running), "--once", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["phase"]["metrics"] == {"loss": 2.5}
    assert told["stages"]["sft"]["last"]["loss"] > 0
    assert main(["watch", str(running.parent)]) == CheckpointError.exit_code


def test_it_watches_until_the_run_ends(running, capsys, monkeypatch):
    from llmft.cli.commands import watch as command

    looks = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        (running / PROGRESS).write_text(json.dumps(TOLD | {"phase": f"phase {len(looks) // 2}"}))
        if len(looks) == 4:
            (running / LOCK).unlink()

    monkeypatch.setattr(command.time, "sleep", sleep)
    assert main(["watch", str(running), "--interval", "0.5"]) == 0
    told = capsys.readouterr().out
    assert len(looks) == 4
    assert min(looks) >= 0.5
    assert told.count("tiny: running") == 3  # one view of each phase, where nobody looks on
    assert told.count("tiny: stopped") == 1


def test_ctrl_c_ends_watching_alone(running, capsys, monkeypatch):
    import signal

    from llmft.cli.commands import watch as command

    monkeypatch.setattr(command.time, "sleep", lambda _: signal.raise_signal(signal.SIGINT))
    assert main(["watch", str(running)]) == 0
    assert "tiny: running" in capsys.readouterr().out


def test_a_view_in_a_terminal_is_drawn_over_the_last_one(running, monkeypatch):
    import io
    import sys

    from llmft.cli.commands import watch as command

    class Terminal(io.StringIO):
        encoding = "utf-8"

        def isatty(self) -> bool:
            return True

    (running / PROGRESS).write_text(json.dumps(TOLD | {"phase": "x\x1b[2Jy"}))
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with command._view(quiet=False) as show:
        show(look(running))
        show(look(running))
    drawn = screen.getvalue()
    assert "[sft] x<U+001B>[2Jy" in drawn
    assert "\x1b[1A" in drawn  # up again
    assert "▁" in drawn


def test_numbers_that_are_no_times_tell_no_time(running, capsys):
    for odd in ({"began": -1e299}, {"began": 1.0, "at": 1e299}, {"total": 2**52, "at": 1e12}):
        (running / PROGRESS).write_text(json.dumps(TOLD | odd))
        assert look(running).phase.left is None
        assert main(["watch", str(running), "--once"]) == 0
        assert "[sft] train 30/" in capsys.readouterr().out


def test_no_name_passes_for_a_line_of_ours(running, capsys):
    bad = "x\n[sft] train 100/100\x1b[2J"
    (running / PROGRESS).write_text(json.dumps(TOLD | {"phase": bad}))
    for name, more in (("run.json", {"name": bad}), ("timeline.json", {"notes": [bad]})):
        told = json.loads((running / name).read_text())
        (running / name).write_text(json.dumps(told | more))
    assert main(["watch", str(running), "--once"]) == 0
    lines = capsys.readouterr().out.split("\n")
    assert len([line for line in lines if "x<U+000A>[sft] train 100/100<U+001B>[2J" in line]) == 3
    assert not [line for line in lines if line.startswith("[sft] train 100/100")]
    (running / PROGRESS).write_text(json.dumps(TOLD | {"phase": "x" * 60_000}))
    assert main(["watch", str(running), "--once"]) == 0
    assert max(map(len, capsys.readouterr().out.split("\n"))) < 1000
