"""What both sides start from: a policy, a reward model, prompts, and their order.

A model's folder holds `policy/` and `reward/`, plain transformers folders; `rows.jsonl` and
`held_out.jsonl`; `scored.jsonl`, answers with llmft's rewards, so that TRL's side can check its
own; and `facts.json`, which names the run of the reward model that llmft's side uses. A task adds
`task.json`, `prompts.jsonl` and the order of the prompts.
"""

from __future__ import annotations

import json
import os
import random
import string
import subprocess
import sys
from pathlib import Path
from typing import Any

from export import export_reward, merge_stage
from task import Task, read_rows, write_rows, write_task

REWARD_PAIRS, WIDE_ROWS = 800, 256
WORDING = " {answer}. "  # no line break: the embedded model has hardly met one


def prepare(folder: Path, model: str) -> None:
    """Make what every task of a model starts from; some minutes for 'embedded', trained twice."""
    folder.mkdir(parents=True, exist_ok=True)
    (embedded if model == "embedded" else wide)(folder)
    run = run_recipe(folder, "reward", reward_stage(folder, model), str(folder / "policy"))
    export_reward(run, folder / "held_out.jsonl", folder / "reward", folder / "scored.jsonl")
    (folder / "facts.json").write_text(json.dumps({"reward_run": run.name}), "utf-8")


def write_inputs(folder: Path, task: Task, seeds: list[int]) -> None:
    """Write a task's settings and prompts, and for each seed the order llmft's loop takes them in.

    There are as many prompts as make whole batches.
    """
    from llmft.api.train_settings import TrainSettings
    from llmft.training.step_plan import Plan

    write_task(folder, task)
    rows = read_rows(folder / "rows.jsonl")
    rows = rows[: len(rows) // task.batch * task.batch]
    write_rows(folder / "prompts.jsonl", rows)
    settings = TrainSettings(max_steps=task.steps, per_device_train_batch_size=task.batch)
    for seed in seeds:
        plan = Plan.of(len(rows), settings, seed)
        steps = [plan.step_batches(step) for step in range(plan.steps)]
        order = [number for step in steps for batch in step for number in batch]
        (folder / f"order-{seed}.json").write_text(json.dumps(order), "utf-8")


def embedded(folder: Path) -> None:
    """Teach the embedded model to answer with a remark, welcome or not, and write it as policy/."""
    stage = {
        "name": "sft",
        "adapter": {"method": "lora", "r": 16, "lora_alpha": 32},
        "alignment": {"method": "sft"},
        "data": {
            "method": "jsonl", "path": "embedded:remarks",
            "columns": {"completion": WORDING + "{said}"},
        },
        "train": {
            "num_train_epochs": 2, "learning_rate": 3e-3, "lr_scheduler_type": "cosine",
            "per_device_train_batch_size": 32,
        },
    }  # fmt: skip
    base = "embedded:model"
    merge_stage(run_recipe(folder, "sft", stage, base), "sft", base, folder / "policy")
    write_rows(folder / "rows.jsonl", _embedded_rows("train"))
    write_rows(folder / "held_out.jsonl", _embedded_rows("validation"))


def _embedded_rows(split: str) -> list[dict[str, Any]]:
    from llmft.toolkit import read_records

    return [dict(record) for _, record in read_records("embedded:remarks", split)]


def wide(folder: Path) -> None:
    """Write a random Llama of 15 million parameters as policy/, and prompts of letters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from llmft.modeling.tiny_models import tiny_tokenizer

    config = LlamaConfig(
        vocab_size=32_000, hidden_size=288, num_hidden_layers=6, intermediate_size=768,
        num_attention_heads=6, num_key_value_heads=6, max_position_embeddings=512,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=256, pad_token_id=257,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).float().save_pretrained(folder / "policy")
    tiny_tokenizer(pad=True).save_pretrained(folder / "policy")
    draw = random.Random(0)
    rows = [
        {key: _letters(draw) for key in ("prompt", "welcome", "unwelcome")} | {"answer": "a"}
        for _ in range(WIDE_ROWS)
    ]
    write_rows(folder / "rows.jsonl", rows)
    write_rows(folder / "held_out.jsonl", rows[:8])


def _letters(draw: random.Random) -> str:
    return "".join(draw.choices(string.ascii_lowercase, k=draw.randint(20, 100)))


def reward_stage(folder: Path, model: str) -> dict[str, Any]:
    """Return the stage that trains the reward model; for random weights it takes one step."""
    real = model == "embedded"
    longer = {"num_train_epochs": 1} if real else {"max_steps": 1}
    return {
        "name": "reward",
        "adapter": {"method": "lora", "r": 16, "lora_alpha": 32},
        "alignment": {"method": "reward", "center_rewards_coefficient": 0.01},
        "data": {
            "method": "preference",
            "path": "embedded:remarks" if real else str(folder / "rows.jsonl"),
            "limit": REWARD_PAIRS,
            "columns": {
                "prompt": "prompt",
                "chosen": WORDING + "{welcome}", "rejected": WORDING + "{unwelcome}",
            },
        },
        "train": {
            **longer, "learning_rate": 1e-3, "lr_scheduler_type": "cosine",
            "per_device_train_batch_size": 32,
        },
        **({"evaluate": {"metrics": []}} if real else {}),
    }  # fmt: skip


def run_recipe(folder: Path, name: str, stage: dict[str, Any], model: str) -> Path:
    """Run a recipe of one stage as a user does, and return its run's folder."""
    recipe = {
        "recipe": 1, "name": name, "seed": 17, "output_dir": str(folder / "runs"),
        "model": {"path": model}, "stages": [stage],
    }  # fmt: skip
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(recipe), "utf-8")  # JSON is YAML
    done = subprocess.run(
        [sys.executable, "-m", "llmft", "run", str(path), "--json"],
        env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"the recipe '{path}' failed:\n{done.stdout}{done.stderr}")
    return Path(json.loads(done.stdout)["folder"])
