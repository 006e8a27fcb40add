"""Which faults strike which method, spread over several servers of forked processes."""

from __future__ import annotations

import argparse
import queue
import random
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import TypeVar

import curves
from canaries import PLANTED, Canaries
from cells import ALIGNMENTS, CELLS, Cell, Ground
from curves import Curves
from damages import DAMAGES
from harness import Server
from ours import FAULTS, Bench, Outcome
from raw import RawBench

KILLS, RAW_KILLS, IN_A_ROW = 200, 40, 4
PROGRAM = "llmft_program"
RAW_FAULTS = ("crash", "full")
Job = Callable[[Server], list[Outcome]]
T = TypeVar("T")


@dataclass
class Swept:
    """What came of all faults."""

    outcomes: list[Outcome] = field(default_factory=list)
    curves: list[Curves] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    sampled: list[str] = field(default_factory=list)


def sweep(ground: Ground, canaries: Canaries, asked: argparse.Namespace) -> Swept:
    """Strike all methods, damage checkpoints, and do the same to the raw loop."""
    dice = random.Random(asked.seed)
    cells = [cell for cell in CELLS if asked.only in str(cell)]
    if asked.sample:
        kinds = [[c for c in cells if c.alignment == kind] for kind in (*ALIGNMENTS, "")]
        cells = in_turn(kinds, max(1, asked.sample // 4), dice)
    share = -(-asked.sample // len(cells)) if asked.sample and cells else None
    swept = Swept()
    jobs: list[Job] = [
        lambda server, cell=cell: _of_a_cell(server, ground, cell, swept, canaries, share, asked)
        for cell in cells
    ]
    jobs.append(lambda server: _damages(server, ground, canaries, asked))
    if not asked.sample:
        jobs.insert(0, lambda server: swept.curves.append(curves.ours(server, ground, 11, 3)) or [])
    jobs.append(lambda server: swept.wrong.extend(_provoked(server, ground, canaries)) or [])
    swept.outcomes += _spread(jobs, asked.jobs, PROGRAM)
    if not asked.no_raw:
        raw: list[Job] = [
            lambda server, fault=fault: _raw(server, ground, fault, asked) for fault in RAW_FAULTS
        ]
        if not asked.sample:
            raw.append(lambda server: swept.curves.append(curves.raw(server, ground, 11, 3)) or [])
        swept.outcomes += _spread(raw, min(2, asked.jobs), "raw_program")
    return swept


def in_turn(groups: Sequence[Sequence[T]], count: int, dice: random.Random) -> list[T]:
    """Return so many things at random, as many of each group as of the others while they last."""
    shuffled = [dice.sample(group, len(group)) for group in dice.sample(groups, len(groups))]
    dealt = [thing for turn in zip_longest(*shuffled) for thing in turn if thing is not None]
    return dealt[:count]


def _spread(jobs: list[Job], count: int, program: str) -> list[Outcome]:
    """Do jobs on so many servers, and return what they returned, in the jobs' order."""
    waiting: queue.SimpleQueue[tuple[int, Job]] = queue.SimpleQueue()
    for numbered in reversed(list(enumerate(jobs))):  # the longest are the last, and begin first
        waiting.put(numbered)
    done: dict[int, list[Outcome]] = {}
    broken: list[BaseException] = []

    def work() -> None:
        server = Server(program, **PLANTED)
        try:
            while not waiting.empty() and not broken:
                number, job = waiting.get_nowait()
                started = time.monotonic()
                done[number] = job(server)
                exact = sum(outcome.result == "exact" for outcome in done[number])
                _say(number, len(jobs), program, exact, len(done[number]), started)
        except queue.Empty:
            pass
        except BaseException as error:
            broken.append(error)
        finally:
            server.close()

    threads = [threading.Thread(target=work) for _ in range(min(count, len(jobs)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if broken:
        raise broken[0]
    return [outcome for number in sorted(done) for outcome in done[number]]


def _say(number: int, jobs: int, program: str, exact: int, count: int, started: float) -> None:
    what = f"{program} {number + 1} of {jobs}"
    seconds = time.monotonic() - started
    print(f"{what}: {exact} of {count} exact, {seconds:.0f} s", file=sys.stderr, flush=True)


def _of_a_cell(
    server: Server,
    ground: Ground,
    cell: Cell,
    swept: Swept,
    canaries: Canaries,
    share: int | None,
    asked: argparse.Namespace,
) -> list[Outcome]:
    dice = random.Random(f"{asked.seed}/{cell}")
    started = time.monotonic()
    bench = Bench(server, ground, cell, canaries)
    longest = time.monotonic() - started
    events = [[(f, n, e) for n, e in enumerate(bench.events(f), start=1)] for f in FAULTS]
    crash, full, places = events
    chosen = in_turn(events, share, dice) if share else [*crash, *full, *places]
    if cell.most and not share:
        chosen = sorted(in_turn([crash, full], cell.most, dice)) + places
        swept.sampled.append(
            f"{cell}: struck at {cell.most} of its {len(crash) + len(full)} file-system events,"
            " drawn by the seed"
        )
    found = [bench.strike(*event) for event in chosen]
    kills = -(-KILLS // len(CELLS)) if share is None else 1
    return found + _kills(bench, dice, kills, longest)


def _kills(
    bench: Bench | RawBench, dice: random.Random, wanted: int, longest: float
) -> list[Outcome]:
    """Kill runs until there were so many kills; where a run was faster, sooner the next time."""
    killed: list[Outcome] = []
    for _ in range(10 * wanted):
        if len(killed) >= wanted:
            break
        struck = bench.kill(dice.randrange(2**31), min(IN_A_ROW, wanted - len(killed)), longest)
        killed += struck
        longest *= 1 if struck else 0.7
    return killed


def _damages(
    server: Server, ground: Ground, canaries: Canaries, asked: argparse.Namespace
) -> list[Outcome]:
    bench = Bench(server, ground, CELLS[0], canaries, steps=6)
    cases = list(DAMAGES.items())
    if asked.sample:
        cases = random.Random(asked.seed).sample(cases, min(len(cases), asked.sample // 10 or 1))
    return [bench.damage(name, damage) for name, damage in cases]


def _provoked(server: Server, ground: Ground, canaries: Canaries) -> list[str]:
    return canaries.provoke(server, ground.recipe(CELLS[0]), ground.home / "provoked")


def _raw(server: Server, ground: Ground, fault: str, asked: argparse.Namespace) -> list[Outcome]:
    dice, sample = random.Random(f"{asked.seed}/{fault}"), asked.sample
    started = time.monotonic()
    bench = RawBench(server, ground)
    longest = time.monotonic() - started
    events = list(enumerate(bench.counted(fault), start=1))
    if sample:
        events = dice.sample(events, max(1, min(len(events), sample // 20)))
    found = [bench.strike(fault, n, event) for n, event in events]
    kills = max(1, sample // 40) if sample else RAW_KILLS // len(RAW_FAULTS)
    return found + _kills(bench, dice, kills, longest)
