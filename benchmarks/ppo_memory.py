"""Measures the memory of PPO beside SFT's at equal batch and length, and beside four models.

    python benchmarks/ppo_memory.py [--rows 32] [--size small|middle] [--limit 1.25]

Each run is a process of its own: SFT; PPO as llmft runs it, with one base under policy, reference
and reward model; and the same with a base of its own under each, and under the value too. Measured
is the highest resident memory (VmHWM) less what the process held when all was imported and a tiny
run had warmed it up. Prints a table, and exits with 1 where PPO takes more than the limit times
SFT's, its cache of keys and values taken off.

Models have random weights. MALLOC_MMAP_THRESHOLD_ keeps glibc from holding what is freed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SIZES = {  # hidden, intermediate, layers, heads, key-value heads, vocabulary
    "small": (256, 768, 12, 8, 4, 8_000),
    "middle": (512, 1408, 16, 8, 8, 16_000),
}
PROMPT, ANSWER = 96, 64
LORA = {"method": "lora", "r": 16}


def main() -> int:
    """Measure each run in a process of its own, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=16, help="rows in a forward pass")
    parser.add_argument("--size", choices=list(SIZES), default="small")
    parser.add_argument("--limit", type=float, default=1.25)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        return child(Path(asked.child))
    _, _, layers, heads, shared, _ = SIZES[asked.size]
    width = SIZES[asked.size][0] // heads
    cache = asked.rows * (PROMPT + ANSWER) * layers * 2 * shared * width * 4
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), asked.size)
        for name in ("sft", "ppo", "four models"):
            place = Path(folder) / name.replace(" ", "_")
            place.mkdir()
            job = {"folder": folder, "rows": asked.rows, "what": name}
            (place / "job.json").write_text(json.dumps(job))
            found[name] = measured(place)
    print(f"batches of {asked.rows} rows, {PROMPT} + {ANSWER} tokens; cache {cache / 1e6:.1f} MB")
    print(f"{'run':>12}  {'peak MB':>9}  {'less cache':>10}  {'beside SFT':>10}")
    for name, peak in found.items():
        own = peak - (cache if name != "sft" else 0)
        print(f"{name:>12}  {peak / 1e6:9.1f}  {own / 1e6:10.1f}  {own / found['sft']:10.2f}")
    return 0 if found["ppo"] - cache <= asked.limit * found["sft"] else 1


def make(folder: Path, size: str) -> None:
    """Write a model with random weights, rows that fill their length, and the earlier stages."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from llmft.modeling.tiny_models import tiny_tokenizer

    hidden, wide, layers, heads, shared, vocabulary = SIZES[size]
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=wide,
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=shared,
        max_position_embeddings=512, bos_token_id=None, eos_token_id=256, pad_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    rows = [
        {"prompt": "p" * PROMPT, "chosen": "c" * (ANSWER - 1), "rejected": "r" * (ANSWER - 1)}
        for _ in range(256)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def stages(job: dict[str, Any], rows: int) -> list[dict[str, Any]]:
    """Return the stages of a run; those before the one that is measured take one row at a time."""
    path = str(Path(job["folder"]) / "rows.jsonl")
    one = {"max_steps": 1, "per_device_train_batch_size": 1}
    sft = {
        "name": "sft", "adapter": LORA, "alignment": {"method": "sft"}, "train": one,
        "data": {"method": "jsonl", "path": path, "columns": {"completion": "chosen"}},
    }  # fmt: skip
    if job["what"] == "sft":
        return [sft | {"train": {"max_steps": 2, "per_device_train_batch_size": rows}}]
    reward = {
        "name": "reward", "adapter": LORA, "alignment": {"method": "reward"}, "train": one,
        "data": {"method": "preference", "path": path},
    }  # fmt: skip
    ppo = {
        "name": "ppo", "start_from": "sft",
        "alignment": {
            "method": "ppo", "reward_model": "reward", "response_length": ANSWER,
            "temperature": 1.0, "num_ppo_epochs": 2, "local_rollout_forward_batch_size": rows,
        },
        "data": {"method": "prompts", "path": path},
        "train": {"max_steps": 2, "per_device_train_batch_size": rows},
    }  # fmt: skip
    return [sft, reward, ppo]


def measured(place: Path) -> int:
    """Run a job in a new process, and return by how many bytes its memory rose at most."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**17), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__, "--child", str(place)],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"'{place.name}' failed:\n{done.stdout}{done.stderr}")
    return int(done.stdout.strip().splitlines()[-1])


def child(place: Path) -> int:
    """Run a job in this process: once tiny, to import and to warm up, then as asked."""
    from llmft.engine.session import run_recipe
    from llmft.recipes.load import load_recipe
    from llmft.registry.registry import Registry

    job = json.loads((place / "job.json").read_text())
    registry = Registry.discover()

    def run(name: str, rows: int) -> None:
        recipe = {
            "recipe": 1, "name": name, "output_dir": str(place / "runs"), "trackers": [],
            "model": {"path": str(Path(job["folder"]) / "model")}, "stages": stages(job, rows),
        }  # fmt: skip
        path = place / f"{name}.yaml"
        path.write_text(json.dumps(recipe))  # JSON is YAML
        run_recipe(load_recipe(path, registry))

    run("warm", 1)
    if job["what"] == "four models":
        separate_models()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    run("measured", job["rows"])
    print(resident("VmHWM") - before)
    return 0


def separate_models() -> None:
    """Give reference, reward model and value a base of their own each, as four models have."""
    import copy

    from llmft_alignments.ppo import rollouts as ppo_rollouts

    from llmft.engine import stage_models

    shared = stage_models.twin
    kept: list[Any] = []

    def twin(model: Any) -> Any:
        # The first is the plain base that later ones are made of: it shares in either case.
        first = not any(model is one for one in kept)
        found = shared(model) if first else copy.deepcopy(model)
        kept.append(found)
        return found

    stage_models.twin = twin
    begin = ppo_rollouts.RolloutSampler.__init__

    def with_value_model(self: Any, config: Any, context: Any) -> None:
        begin(self, config, context)
        self.value_model = copy.deepcopy(context.models.bare)

    ppo_rollouts.RolloutSampler.__init__ = with_value_model  # type: ignore[method-assign]


def resident(name: str) -> int:
    """Return a figure of this process's memory, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("this needs Linux: /proc/self/status has no such figure")


if __name__ == "__main__":
    sys.exit(main())
