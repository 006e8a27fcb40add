"""Hands llmft hostile model folders, runs, ratings, checkpoints and data files, and counts.

`python benchmarks/attacks/run.py` tries 20,000 inputs and writes the table of docs/security.md;
`--sample 200 --seed 3` tries so many and writes nothing; `--only 1234` repeats one and tells all.
For each five inputs of files there is one of what programs say to each other: a request to `llmft
serve`, or what a server answers to `verify export`. Their numbers begin at 20,000.
`--results FILE` notes each outcome there; what the file has already is not tried again, so that a
stopped attack goes on, and several can share a file, each with `--part 0/2`, `--part 1/2`.
Each input is read in a forked process with 10 seconds and 2 GB. It counts as held where it is read
or ends in a clear fault, nothing runs, and nothing outside its folder is changed. Leaves with 1
where one is not.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import importlib
import json
import os
import pkgutil
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

from pydantic import BaseModel

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs" / "security.md"
MARKS = "<!-- measured: begin -->", "<!-- measured: end -->"
INPUTS, SECONDS, GIGABYTES = 20_000, 10.0, 2
KINDS = (
    "model", "tokenizer", "run", "adapter", "checkpoint", "ratings", "data", "export", "config",
    "recipe",
)  # fmt: skip
TALKS = ("served", "endpoint")
WORDS = {
    "model": "model folder: config, generation config, safetensors",
    "tokenizer": "tokenizer and chat template",
    "run": "run folder",
    "adapter": "adapter and manifest of a run",
    "checkpoint": "checkpoint",
    "ratings": "samples and ratings",
    "data": "data file: jsonl, json, csv, parquet, gz",
    "export": "merged model and adapter folder of a run",
    "config": "configuration of another tool",
    "recipe": "recipe",
    "served": "requests to `llmft serve`",
    "endpoint": "what a server answers to `verify export`",
}

for name, value in {
    "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
    "LLMFT_CACHE": "off", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}.items():  # fmt: skip
    os.environ.setdefault(name, value)


def main() -> int:
    """Try the inputs, print what was not held, and return 1 where there is any."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, help=f"so many inputs; default: {INPUTS:,}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, help="stop after so long, however many were tried")
    parser.add_argument("--only", type=int, help="this input alone, with everything it says")
    parser.add_argument("--results", type=Path, help="note each outcome in this file, and go on")
    parser.add_argument("--part", default="0/1", help="of the inputs: 1/2 is the second half")
    parser.add_argument("--page", action="store_true", help="write the table of a sample too")
    asked = parser.parse_args()
    part, parts = (int(number) for number in asked.part.split("/"))
    count = asked.sample or INPUTS
    if count > INPUTS:
        parser.error(f"--sample is {INPUTS:,} at most: give another --seed for more")
    every = [*range(count), *range(INPUTS, INPUTS + count // 5)]
    numbers = every[part::parts] if asked.only is None else [asked.only]
    tried = _noted(asked.results)
    left = [number for number in numbers if (asked.seed, number) not in tried]
    with tempfile.TemporaryDirectory(prefix="llmft-attacks-") as place:
        ground = Ground(Path(place)) if left else None
        began = time.monotonic()  # what it takes to make and read the unchanged inputs is no trial
        for number in left:
            kind, outcome, told = ground.tried(number, asked.seed, verbose=asked.only is not None)
            tried[asked.seed, number] = kind, outcome
            if asked.results:
                with asked.results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps([asked.seed, number, kind, outcome, told]) + "\n")
            if not _held(outcome):
                print(f"{number} (seed {asked.seed}) {kind}: {outcome}: {told}", flush=True)
            if asked.seconds and time.monotonic() - began > asked.seconds:
                break
    table = as_table(Counter((kind, o.partition(" ")[0]) for kind, o in tried.values()))
    print(table)
    held = sum(_held(outcome) for _, outcome in tried.values())
    if asked.page or (asked.sample is None and asked.only is None and parts == 1):
        before, _, rest = PAGE.read_text("utf-8").partition(MARKS[0])
        after = rest.partition(MARKS[1])[2]
        seeds = ", ".join(str(seed) for seed in sorted({seed for seed, _ in tried}))
        said = f"{len(tried):,} inputs, seed {seeds}: {held:,} held."
        PAGE.write_text(f"{before}{MARKS[0]}\n{table}\n\n{said}\n{MARKS[1]}{after}", "utf-8")
    return 0 if held == len(tried) else 1


def _held(outcome: str) -> bool:
    return outcome.partition(" ")[0] in ("right", "fault")


def _noted(path: Path | None) -> dict[tuple[int, int], tuple[str, str]]:
    """Return the kind and the outcome of each seed and number that a file has."""
    if path is None or not path.exists():
        return {}
    lines = (json.loads(line) for line in path.read_text("utf-8").splitlines())
    return {(seed, number): (kind, outcome) for seed, number, kind, outcome, *_ in lines}


def as_table(counts: Counter[tuple[str, str]]) -> str:
    """Return what came of the inputs as a Markdown table, a line for each kind."""
    lines = ["| input | tried | read as it is | clear fault | not held |", "|---|---|---|---|---|"]
    for kind in (*KINDS, *TALKS):
        each = {outcome: n for (of, outcome), n in counts.items() if of == kind}
        tried, right, fault = sum(each.values()), each.get("right", 0), each.get("fault", 0)
        rest = tried - right - fault
        lines.append(f"| {WORDS[kind]} | {tried:,} | {right:,} | {fault:,} | {rest:,} |")
    return "\n".join(lines)


class Ground:
    """What is mutated: a tiny model, a run with an adapter and checkpoints, ratings, data files."""

    def __init__(self, place: Path) -> None:
        sys.path.insert(0, str(HERE))
        from inputs import make

        self.place = place
        _import_all()
        self.seeds = make(place / "seeds")
        for kind in (*KINDS, *TALKS):
            shutil.copytree(self.seeds / kind, place / "case")
            if (outcome := _in_a_process(kind, place / "case", 0.0, verbose=True)) != "right":
                raise RuntimeError(f"the unchanged input of {kind} is not read: {outcome}")
            shutil.rmtree(place / "case")
        gc.collect()
        gc.freeze()  # a child then copies no page for the collector's marks

    def tried(self, number: int, seed: int, verbose: bool = False) -> tuple[str, str, str]:
        """Return an input's kind, what came of it, and what was changed in it."""
        from mutants import change_talk, mutate

        rng = Random(f"{seed}/{number}")
        kinds = KINDS if number < INPUTS else TALKS
        kind = kinds[number % len(kinds)]
        case, outside = self.place / "case", self.place / "outside"
        for folder in (case, outside):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.seeds / kind, case)
        outside.mkdir()
        (outside / "secret").write_text("a secret\nhalf a line")
        only = {"tokenizer": "t", "adapter": "adapter", "recipe": "r.yaml"}.get(kind, "")
        talk = kind in TALKS
        told = change_talk(rng, case) if talk else mutate(rng, case, outside, only)
        before = _state(outside)
        outcome = _in_a_process(kind, case, rng.random(), verbose)
        if (case / "RAN").exists() or (self.place / "RAN").exists():
            outcome = "ran a program"
        if _state(outside) != before:
            outcome = "wrote outside"
        return kind, outcome, told


def _import_all() -> None:
    """Import every module of llmft, and read its own tables, so that no child has to."""
    import llmft
    from llmft.importing import tables

    for module in pkgutil.walk_packages(llmft.__path__, "llmft."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for model in _below(BaseModel):
        if model.__module__.startswith("llmft"):
            model.model_rebuild()
    tables.known_rows()
    for peer in tables.known_keys():
        tables.table(peer)


def _below(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for each in model.__subclasses__():
        yield each
        yield from _below(each)


def _state(outside: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in outside.iterdir()}


def _in_a_process(kind: str, case: Path, dice: float, verbose: bool) -> str:
    """Return what came of reading an input: right, fault CODE, or what is not held."""
    source, out = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(source)
        _read(kind, case, dice, out, verbose)
    os.close(out)
    began, asleep = time.monotonic(), 0
    with os.fdopen(source, "rb") as answers:
        os.set_blocking(answers.fileno(), False)
        said = b""
        while asleep < _ASLEEP and time.monotonic() - began < _LONGEST:
            piece = answers.read()
            said += piece or b""
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                said += answers.read() or b""
                code = os.waitstatus_to_exitcode(status)
                return said.decode() or ("slow" if code == -signal.SIGXCPU else f"died {code}")
            late = time.monotonic() - began > SECONDS
            asleep = asleep + 1 if late and _is_asleep(pid) else 0
            time.sleep(0.1 if late else 0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "slow"


# The 10 seconds are the processor's, for a machine that is shared: who waits for nothing is asleep.
_ASLEEP, _LONGEST = 30, 600.0


def _is_asleep(pid: int) -> bool:
    """Return whether a process and its children all wait for something."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            pids = [pid, *map(int, file.read().split())]
        return all(_state_of(each) == "S" for each in pids)
    except FileNotFoundError:  # a child has just ended
        return False


def _state_of(pid: int) -> str:
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
        return file.read().rpartition(")")[2].split()[0]


def _read(kind: str, case: Path, dice: float, out: int, verbose: bool) -> None:
    """Read an input with its bounds, tell the outcome, and leave."""
    outcome = "died"
    try:
        os.chdir(case)
        with open("/proc/self/statm", encoding="ascii") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        limit = now + GIGABYTES * 2**30
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CPU, (int(SECONDS), int(SECONDS) + 1))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if verbose:
            faulthandler.dump_traceback_later(SECONDS - 1)
        else:
            nowhere = os.open(os.devnull, os.O_RDWR)
            for number in (0, 1, 2):
                os.dup2(nowhere, number)
        started: list[str] = []
        inside = str(case.parent)

        def watch(event: str, values: tuple[object, ...]) -> None:
            if event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"):
                started.append(f"ran {values[:1]}")
            elif event == "socket.connect":
                started.append(f"connected to {values[1:]}")
            elif event == "open" and isinstance(values[0], str) and isinstance(values[2], int):
                writes = values[2] & (os.O_WRONLY | os.O_RDWR | os.O_TRUNC)
                known = ("/dev/null", "/dev/shm")
                path = os.path.abspath(values[0])
                if writes and not path.startswith((inside, tempfile.gettempdir(), *known)):
                    started.append(f"wrote {path}")

        sys.addaudithook(watch)
        from inputs import use

        try:
            outcome = use(kind, dice)
        except MemoryError:
            outcome = "memory"
        except BaseException as error:
            outcome = f"bug {type(error).__name__}: {error}"
            if verbose:
                traceback.print_exc()
        if started:
            outcome = started[0]
    finally:
        os.write(out, outcome[:500].encode("utf-8", "replace"))
        os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
