"""Runs in forked processes that can be killed at any event, and what they leave behind."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML

HERE = Path(__file__).parent


@dataclass
class Ended:
    """How a child ended: its exit code (negative: a signal), what it printed, its run folder."""

    code: int
    text: str
    folder: Path
    events: tuple[str, ...] = ()


class Server:
    """Hands jobs to the process that forks.

    program: a module on the path that runs in place of `llmft`; see server.py.
    """

    def __init__(self, program: str = "", **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "server.py"), *([program] if program else [])],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )  # fmt: skip
        assert self.process.stdout.readline() == "ready\n"

    def close(self) -> None:
        self.process.stdin.close()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:  # it has no work left; Python only takes its time to end
            self.process.kill()
            self.process.wait()

    def start(
        self, argv: list[str], out: Path, fault: dict | None = None, processes: int = 1
    ) -> int:
        job = {"argv": argv, "out": str(out), "fault": fault, "processes": processes}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def end(self) -> int:
        return int(self.process.stdout.readline())


def tiny_recipe(model_folder: Path, rows_file: Path) -> dict:
    """Six steps over two and a half epochs, accumulated, with dropout, and three saves."""
    return {
        "recipe": 1,
        "name": "tiny",
        "model": {"path": str(model_folder)},
        "stages": [
            {
                "name": "sft",
                "adapter": {"method": "lora", "r": 2, "lora_dropout": 0.2},
                "alignment": {"method": "sft"},
                "data": {"method": "jsonl", "path": str(rows_file)},
                "train": {
                    "max_steps": 6,
                    "per_device_train_batch_size": 3,
                    "gradient_accumulation_steps": 2,
                    "learning_rate": 0.01,
                    "warmup_steps": 2,
                    "logging_steps": 1,
                    "save_strategy": "steps",
                    "save_steps": 2,
                },
            }
        ],
    }


def run_in_child(
    server: Server,
    parent: Path,
    data: dict,
    place: str,
    resume=False,
    fault=None,
    kill=None,
    words=(),
    processes=1,
) -> Ended:
    """Run a recipe in a child, and wait for its end; kill: called with its pid meanwhile."""
    home = parent / place
    home.mkdir(exist_ok=True)
    path = home / "recipe.yaml"
    with path.open("w") as stream:
        YAML(typ="safe").dump(data, stream)
    argv = ["run", str(path), "--output-dir", str(home / "runs"), *words]
    out = home / "out.txt"
    pid = server.start(argv + (["--resume"] if resume else []), out, fault, processes)
    if kill is not None:
        with suppress(ProcessLookupError):  # it was faster
            kill(pid)
    code = server.end()
    runs = (home / "runs" / data["name"]).glob("*")
    folders = sorted(runs, key=lambda path: path.stat().st_ctime_ns)
    return Ended(code, out.read_text(), folders[-1] if folders else home, events_of(out))


def events_of(out: Path) -> tuple[str, ...]:
    """Return the kinds of file-system events that a child counted."""
    counted = Path(f"{out}.events")
    events = json.loads(counted.read_text()) if counted.exists() else ()
    counted.unlink(missing_ok=True)
    return tuple(events)


def state_of(folder: Path) -> dict[str, object]:
    """Return everything that must be the same to the bit after any number of interruptions.

    The weights, and for each stage the last checkpoint: weights, optimiser, generators, losses,
    scores and samples; the rows that a stage made; and the logged metrics, but for how fast they
    came.
    """
    state: dict[str, object] = {}
    for pattern in ("stages/*/adapter/*.safetensors", "stages/*/rows.jsonl"):
        for path in sorted(folder.glob(pattern)):
            state[str(path.relative_to(folder))] = digest(path)
    for stage in sorted((folder / "stages").iterdir()):
        steps = sorted((stage / "checkpoints").glob("step-*"), key=lambda p: int(p.name[5:]))
        state[f"{stage.name}/checkpoints"] = [p.name for p in steps]
        if steps:
            facts = json.loads((steps[-1] / "state.json").read_text())
            del facts["run_id"], facts["facts"]["report"]["seconds"]
            del facts["facts"]["window"]["seconds"]
            state[f"{stage.name}/tensors"] = digest(steps[-1] / "state.safetensors")
            state[f"{stage.name}/facts"] = facts
        metrics = stage / "metrics.jsonl"
        told = metrics.read_text() if metrics.exists() else ""  # a task has none
        lines = [json.loads(line) for line in told.splitlines()]
        timeless = [{k: v for k, v in x.items() if k != "tokens_per_second"} for x in lines]
        state[f"{stage.name}/metrics"] = sorted(timeless, key=lambda x: (x["step"], x["phase"]))
        samples = stage / "samples.jsonl"
        state[f"{stage.name}/samples"] = samples.read_text() if samples.exists() else None
    return state


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def tree(folder: Path) -> dict[str, str]:
    """Return the hash of every file below a folder, and its time of change."""
    return {
        str(path.relative_to(folder)): f"{digest(path)} {path.stat().st_mtime_ns}"
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
