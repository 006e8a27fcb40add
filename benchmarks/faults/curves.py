"""A longer run that is killed again and again, with llmft and with the raw loop, step by step."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cells import CELLS, Ground
from harness import Ended, Server, run_in_child
from ours import last_step
from raw import RawBench

STEPS, SAVE_STEPS = 60, 5


@dataclass
class Curves:
    """Losses by step of the run that nothing stopped and of the killed one, and where it was."""

    name: str
    straight: list[float] = field(default_factory=list)
    killed: list[float] = field(default_factory=list)
    kills: list[int] = field(default_factory=list)
    verdict: str = ""


def ours(server: Server, ground: Ground, kills: int, seed: int) -> Curves:
    """Return the curves of lora + sft, killed so many times at random."""
    recipe = ground.recipe(CELLS[0], STEPS, SAVE_STEPS)
    found = Curves("llmft")
    home = ground.home / "curves"
    home.mkdir()
    started = time.monotonic()
    whole = run_in_child(server, home, recipe, "straight")
    longest = time.monotonic() - started
    found.straight = _losses(whole.folder)
    dice, resumes = random.Random(seed), False
    ended: Ended = whole
    while len(found.kills) < kills:
        ended = run_in_child(
            server, home, recipe, "killed", resume=resumes, kill=_killer(dice, longest)
        )
        if ended.code == 0:
            break
        resumes = resumes or (ended.folder / "run.json").is_file()
        found.kills.append(last_step(ended.folder))
    if ended.code != 0:
        ended = run_in_child(server, home, recipe, "killed", resume=resumes)
    found.killed = _losses(ended.folder)
    same = found.killed == found.straight and ended.code == 0
    found.verdict = "the same to the bit" if same else f"differs; exit code {ended.code}"
    return found


def raw(server: Server, ground: Ground, kills: int, seed: int) -> Curves:
    """Return the curves of the raw loop, killed as often, until it cannot go on."""
    started = time.monotonic()
    bench = RawBench(server, ground, STEPS, SAVE_STEPS)
    longest = time.monotonic() - started
    found = Curves("raw TRL", bench.state[1])
    dice, code, text = random.Random(seed), -signal.SIGKILL, ""
    while len(found.kills) < kills and code < 0:
        base = _checkpoint(bench.home / "killed")
        code, text, _ = bench.go("killed", kill=_killer(dice, longest))
        if code < 0:
            found.kills.append(base + text.count("'loss':"))
    if code < 0:
        code, text, _ = bench.go("killed")
    if code == 0:
        found.killed = bench.state_of("killed")[1]
        same = bench.state_of("killed") == bench.state
        found.verdict = "the same to the bit" if same else "ended otherwise"
    else:
        told = text.replace(str(bench.home), "its folder")
        lines = [line for line in told.splitlines() if line.strip()]
        found.verdict = f"cannot go on: {lines[-1][:80] if lines else code}"
    return found


def _killer(dice: random.Random, longest: float) -> Callable[[int], None]:
    def kill(pid: int) -> None:
        time.sleep(dice.uniform(0.2, 0.6) * longest)
        os.kill(pid, signal.SIGKILL)

    return kill


def _losses(folder: Path) -> list[float]:
    lines = (folder / "stages/sft/metrics.jsonl").read_text("utf-8").splitlines()
    entries = [json.loads(line) for line in lines]
    return [entry["loss"] for entry in entries if entry["phase"] == "train"]


def _checkpoint(folder: Path) -> int:
    """Return the step that a trainer goes on from."""
    steps = [int(path.name.partition("-")[2]) for path in folder.glob("checkpoint-*")]
    return max(steps, default=0)
