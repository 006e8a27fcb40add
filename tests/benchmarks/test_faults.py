"""The program that measures: a very small sample of it, and that it would see what it looks for."""

from __future__ import annotations

import importlib
import math
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "benchmarks" / "faults" / "run.py"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


@pytest.mark.extended
def test_a_small_sample_of_all_faults_ends_bit_exactly(tmp_path):
    (scratch := tmp_path / "scratch").mkdir()
    (page := tmp_path / "page.md").write_text(f"before\n{BEGIN}\n{END}\nafter\n")
    small = ["--sample", "3", "--seed", "1", "--jobs", "1", "--no-raw", "--page", str(page)]
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *small],
        capture_output=True, text=True, env={**os.environ, "TMPDIR": str(scratch)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAILED" not in done.stdout
    assert "| damaged file | 1 | 1 |" in done.stdout
    assert "found: 0." in done.stdout
    assert list(scratch.iterdir()) == []
    before, table, after = page.read_text().partition(done.stdout.strip())
    assert table
    assert (before[:6], after[-6:]) == ("before", "after\n")
    assert page.with_suffix(".svg").read_text().startswith("<svg")


@pytest.fixture(autouse=True)
def _on_the_path(monkeypatch):
    for place in ("benchmarks/faults", "tests/end_to_end/checkpoints"):
        monkeypatch.syspath_prepend(str(ROOT / place))


def test_a_sample_has_as_much_of_each_kind_while_there_is_some():
    from sweep import in_turn

    kinds = [["ppo", "ppo"], ["sft"] * 9, ["pipeline"]]
    dealt = in_turn(kinds, 6, random.Random(3))
    assert {kind: dealt.count(kind) for kind in dealt} == {"ppo": 2, "sft": 3, "pipeline": 1}


def test_a_sigkill_comes_at_the_call_that_is_asked_for(monkeypatch):
    import llmft_program

    killed = []
    monkeypatch.setattr(os, "kill", lambda pid, number: killed.append((pid, number)))
    monkeypatch.setattr(math, "sqrt", math.sqrt)  # and put back afterwards
    monkeypatch.setattr(math, "floor", math.floor)
    places = {"a root": "math:sqrt", "a floor": "math:floor"}
    calls = llmft_program.install("places", places=places, at=2)
    assert (math.sqrt(9.0), killed) == (3.0, [])
    assert (math.floor(2.5), killed) == (2, [(os.getpid(), signal.SIGKILL)])
    math.sqrt(4.0)
    assert (calls.names, len(killed)) == (["a root", "a floor", "a root"], 1)


def test_every_place_is_a_function_of_llmft():
    from cells import BETWEEN_STAGES, IN_PPO

    for where in (BETWEEN_STAGES | IN_PPO).values():
        module, _, path = where.partition(":")
        found = importlib.import_module(module)
        for name in path.split("."):
            found = getattr(found, name)
        assert callable(found)


def test_what_a_method_cannot_meet_is_a_dash_and_places_stand_in_a_runs_order():
    from drawing import picture
    from ours import Outcome
    from tally import Tally

    tally = Tally([
        Outcome("lora + ppo", "place", "inner epochs", "exact"),
        Outcome("lora + ppo", "place", "in the rollout", "other bits"),
        Outcome("raw TRL", "crash", "write", "exact"),
    ])  # fmt: skip
    assert tally.faults == ["crash: write", "SIGKILL: in the rollout", "SIGKILL: inner epochs"]
    drawn = picture([], tally)
    assert drawn.count(">–<") == 3
    assert ">0% (1)<" in drawn


def test_a_recipe_is_slow_where_it_is_slow_three_times(monkeypatch, tmp_path):
    import fuzz

    def seconds(*read):
        clock = iter(read)
        monkeypatch.setattr(fuzz.time, "process_time", lambda: next(clock))
        return fuzz._timed(tmp_path, None)[0]

    monkeypatch.setattr(fuzz, "_load", lambda path, registry: ("", True))
    assert seconds(0.0, 0.04) == 40.0
    assert seconds(0.0, 0.08, 1.0, 1.06, 2.0, 2.25) == pytest.approx(60.0)
    assert seconds(0.0, 0.08, 1.0, 1.01) == pytest.approx(10.0)


def test_a_fault_that_is_not_survived_fails_it():
    from canaries import Canaries
    from fuzz import Fuzzed
    from ours import Outcome
    from report import Measured, table
    from tally import Tally

    outcomes = [
        Outcome("lora + sft", "crash", "write", "exact"),
        Outcome("lora + sft", "full", "sync", "other bits"),
        Outcome("raw TRL", "crash", "write", "cannot go on: ValueError"),
    ]
    fuzzed = Fuzzed(2, 1, ["7: KeyError"], [1.0, 80.0])
    measured = Measured(Tally(outcomes), fuzzed, Canaries(), "run.py", 1.0)
    assert measured.failures == [
        "lora + sft, full at sync: other bits",
        "recipe 7: KeyError",
        "p99 of loading a recipe is 80 ms",
    ]
    assert "| all | 2 | 1 | 1 | 0 |" in table(measured)
