"""Who takes part, and how each is started in a fresh process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clock import BEGAN
from peers import Peer, present
from workload import LARGER, Task, read_task

HERE = Path(__file__).parent
Command = Callable[[Path, Path], list[str]]
"""From a task's folder and the file for the figures to a command line."""


@dataclass(frozen=True)
class Contestant:
    """A program that trains a task.

    command: how it is started; tasks: those it can do; same_order: whether it takes the rows in the
    order of the file, so that its losses are those of the others, step by step.
    """

    name: str
    command: Command
    tasks: Callable[[Task], bool] = lambda task: True
    same_order: bool = True


def llmft(folder: Path, out: Path) -> list[str]:
    """Return `llmft run` on the task's recipe."""
    task = read_task(folder)
    return _llmft(folder, out, task.adapter, task.dropout)


def llmft_lora(folder: Path, out: Path) -> list[str]:
    """Return `llmft run` on the task with LoRA in place of its adapter, without dropout."""
    return _llmft(folder, out, "lora")


def _llmft(folder: Path, out: Path, adapter: str, dropout: float = 0.0) -> list[str]:
    task = read_task(folder)
    options: dict[str, Any] = {"method": adapter, "r": task.rank, "lora_alpha": 2 * task.rank}
    options["lora_dropout"] = dropout
    if adapter == "qlora":
        options["bnb_4bit_compute_dtype"] = "float32"
    alignment: dict[str, Any] = {"method": task.alignment}
    if task.alignment == "orpo":
        alignment["learn_prompt"] = True  # as TRL does
    recipe = {
        "recipe": 1,
        "name": task.name,
        "output_dir": str(folder / "runs"),
        "model": {"path": str(folder / "model"), "dtype": task.dtype},
        "plugins": ["stopwatch"],
        "trackers": [{"method": "stopwatch", "path": str(out)}],
        "stages": [
            {
                "name": "stage",
                "adapter": options,
                "alignment": alignment,
                "data": {
                    "method": "preference" if task.in_pairs else "jsonl",
                    "path": str(folder / "rows.jsonl"),
                },
                "train": {
                    "max_steps": task.steps,
                    "per_device_train_batch_size": task.batch,
                    "gradient_accumulation_steps": task.accumulation,
                    "learning_rate": task.rate,
                    "lr_scheduler_type": "constant",
                    "logging_steps": 1,
                    "bf16": task.bf16,
                },
            }
        ],
    }
    path = folder / f"{adapter}-{dropout}.yaml"
    path.write_text(json.dumps(recipe), "utf-8")  # JSON is YAML
    return [sys.executable, "-m", "llmft", "run", str(path), "--quiet"]


def trl(folder: Path, out: Path) -> list[str]:
    """Return TRL's trainer, in the same environment."""
    return [sys.executable, str(HERE / "trl_child.py"), str(folder), str(out)]


def trl_padding_free(folder: Path, out: Path) -> list[str]:
    """Return TRL's trainer with `padding_free`, which it has for SFT."""
    return [*trl(folder, out), "--padding-free"]


def trl_grouped(folder: Path, out: Path) -> list[str]:
    """Return TRL's trainer with rows grouped by length."""
    return [*trl(folder, out), "--grouped"]


def trl_cli(folder: Path, out: Path) -> list[str]:
    """Return TRL's command line, in the same environment."""
    return [sys.executable, str(HERE / "trl_cli_child.py"), str(folder), str(out)]


def of_peer(peer: Peer) -> Contestant:
    """Return a peer as a contestant."""

    def command(folder: Path, out: Path) -> list[str]:
        return [str(peer.python), str(peer.child), str(folder), str(out)]

    return Contestant(peer.name, command, lambda task: task.name in peer.tasks)


def _is_larger_sft(task: Task) -> bool:
    plain = task.adapter == "lora" and not task.dropout
    return task.name in LARGER and task.alignment == "sft" and plain


CONTESTANTS = (
    Contestant("llmft", llmft),
    Contestant("llmft lora", llmft_lora, lambda task: task.adapter == "dora" or task.dropout > 0),
    Contestant("trl", trl, lambda task: not task.dropout),
    Contestant("trl padding-free", trl_padding_free, _is_larger_sft),
    Contestant("trl grouped", trl_grouped, _is_larger_sft, False),
    Contestant("trl sft", trl_cli, lambda task: task.name in ("sft", "sft-128k")),
    *map(of_peer, present()),
)


LIMIT = Contestant(
    "products alone",
    lambda folder, out: [sys.executable, str(HERE / "products_child.py"), str(folder), str(out)],
)
"""What stands beside them, and trains nothing: see products_child.py."""


def run_once(contestant: Contestant, folder: Path, threads: int) -> dict[str, Any]:
    """Return the figures of one run in a fresh process; raise RuntimeError where it fails."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "figures.json"
        command = contestant.command(folder, out)
        env = {**os.environ, "OMP_NUM_THREADS": str(threads), BEGAN: str(time.time())}
        env |= {"PYTHONPATH": os.pathsep.join([str(_stopwatch(Path(scratch))), str(HERE)])}
        env |= {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "LLMFT_CACHE": "off"}
        env |= {"HF_DATASETS_CACHE": str(Path(scratch) / "datasets")}  # nobody finds rows tokenised
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        if done.returncode or not out.exists():
            raise RuntimeError(f"{contestant.name} failed:\n{done.stdout[-2000:]}{done.stderr}")
        figures: dict[str, Any] = json.loads(out.read_text("utf-8"))
        return figures


def _stopwatch(folder: Path) -> Path:
    """Lay down the stopwatch as an installed distribution, as pip would, and return its folder."""
    info = folder / "llmft_stopwatch-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: llmft-stopwatch\nVersion: 1.0\n")
    offers = [
        f"[llmft.{group}]\nstopwatch = llmft_stopwatch\n" for group in ("trackers", "plugins")
    ]
    (info / "entry_points.txt").write_text("".join(offers))
    (folder / "llmft_stopwatch.py").write_text(
        (HERE / "stopwatch" / "llmft_stopwatch.py").read_text("utf-8"), "utf-8"
    )
    return folder
