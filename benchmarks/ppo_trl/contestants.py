"""Who takes part, and how each is started in a fresh process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export import merge_stage
from task import read_task, shared_options

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Contestant:
    """One way to do PPO. value: how TRL's value model is trained; None: llmft, which has none."""

    name: str
    value: str | None = None

    @property
    def folder(self) -> str:
        """Its name, as a folder may be called."""
        return self.name.replace(", ", "-").replace(" ", "-").lower()


OURS = Contestant("llmft")
TRL = (Contestant("trl", "full"), Contestant("trl, LoRA value", "lora"))
"""As its own examples have it, with a whole value model; and the least it can be made to hold."""


def run_once(
    contestant: Contestant, folder: Path, out: Path, seed: int, trl_python: str
) -> dict[str, Any]:
    """Return the figures of one run, and leave the trained policy in `out`/policy.

    Raises RuntimeError where the run fails.
    """
    out.mkdir(parents=True, exist_ok=True)
    if contestant.value is None:
        made = json.loads(run_child(_llmft(folder, out, seed), [lay_stopwatch(out), HERE]))
        merge_stage(Path(made["folder"]), "ppo", str(folder / "policy"), out / "policy")
    else:
        command = [trl_python, str(HERE / "trl_side.py"), str(folder), str(out)]
        run_child([*command, "--seed", str(seed), "--value", contestant.value], [])
    figures: dict[str, Any] = json.loads((out / "figures.json").read_text("utf-8"))
    return figures


def run_child(command: list[str], importable: list[Path]) -> str:
    """Return what a process prints; RuntimeError where it fails. importable: folders it sees."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    env["PYTHONPATH"] = os.pathsep.join(map(str, importable))
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command} failed:\n{done.stdout[-2000:]}{done.stderr[-6000:]}")
    return done.stdout


def _llmft(folder: Path, out: Path, seed: int) -> list[str]:
    """Return `llmft run` on the task's recipe: a fresh LoRA on policy/, as on the other side."""
    task = read_task(folder)
    facts = json.loads((folder / "facts.json").read_text("utf-8"))
    stage = {
        "name": "ppo",
        "adapter": {
            "method": "lora", "r": task.r, "lora_alpha": task.lora_alpha,
            "target_modules": list(task.target_modules),
        },
        "alignment": {
            "method": "ppo", "reward_model": f"run:{facts['reward_run']}/reward",
            "local_rollout_forward_batch_size": task.batch, **shared_options(task),
        },
        "data": {"method": "prompts", "path": str(folder / "prompts.jsonl")},
        "train": {
            "max_steps": task.steps, "per_device_train_batch_size": task.batch,
            "learning_rate": task.learning_rate, "lr_scheduler_type": task.lr_scheduler_type,
            "max_grad_norm": 0,  # TRL's loop clips none, whatever it is told
            "logging_steps": 1,
        },
    }  # fmt: skip
    recipe = {
        "recipe": 1, "name": "ppo", "seed": seed, "output_dir": str(folder / "runs"),
        "model": {"path": str(folder / "policy")}, "plugins": ["ppo_stopwatch"],
        "trackers": [{"method": "ppo_stopwatch", "path": str(out / "figures.json")}],
        "stages": [stage],
    }  # fmt: skip
    path = out / "ppo.yaml"
    path.write_text(json.dumps(recipe), "utf-8")  # JSON is YAML
    return [sys.executable, "-m", "llmft", "run", str(path), "--json"]


def lay_stopwatch(out: Path) -> Path:
    """Lay down the stopwatch as an installed distribution, as pip would, and return its folder."""
    folder = out / "plugin"
    info = folder / "llmft_ppo_stopwatch-1.0.dist-info"
    info.mkdir(parents=True)
    name = "Name: llmft-ppo-stopwatch\nVersion: 1.0\n"
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\n{name}")
    point = "ppo_stopwatch = llmft_ppo_stopwatch\n"
    offers = [f"[llmft.{group}]\n{point}" for group in ("trackers", "plugins")]
    (info / "entry_points.txt").write_text("".join(offers))
    module = "llmft_ppo_stopwatch.py"
    (folder / module).write_text((HERE / "stopwatch" / module).read_text("utf-8"), "utf-8")
    return folder
