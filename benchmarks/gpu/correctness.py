"""What a GPU computes, held against the CPU: every adapter with every alignment, and attention."""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from record import Check

ADAPTERS = {
    "lora": "{method: lora, r: 4}",
    "lora, dropout": "{method: lora, r: 4, lora_dropout: 0.1}",
    "dora": "{method: dora, r: 4}",
    "dora, dropout": "{method: dora, r: 4, lora_dropout: 0.1}",
    "pissa": "{method: lora, r: 4, init_lora_weights: pissa}",
    "prefix": "{method: prefix, num_virtual_tokens: 4}",
    "ptuning": "{method: ptuning, num_virtual_tokens: 4}",
    "prompt": "{method: prompt, num_virtual_tokens: 4}",
    "full": "{method: full}",
}
_LENGTH = "{method: length, target: 8}"
_GROUPS = "num_generations: 2, max_completion_length: 24"
_PPO = f"method: ppo, reward: {_LENGTH}, response_length: 6, num_ppo_epochs: 1"
ALIGNMENTS = {
    "sft": "{method: sft}",
    "dpo": "{method: dpo}",
    "orpo": "{method: orpo}",
    "reward": "{method: reward}",
    "ppo": f"{{{_PPO}, top_p: 0.9}}",
    "kto": "{method: kto}",
    "cpo": "{method: cpo}",
    "grpo": f"{{method: grpo, rewards: [{_LENGTH}], {_GROUPS}}}",
    "classification": "{method: classification}",
    "gkd": '{method: gkd, teacher: {path: "MODEL"}, lmbda: 1, max_new_tokens: 4}',
}
_PAIR = '{chosen: " {answer}. {welcome}", rejected: " {answer}. {unwelcome}"}'
DATA = {
    "sft": '{method: jsonl, path: "embedded:remarks", columns: {completion: " {answer}. {said}"},'
    " limit: 16}",
    "pairs": f'{{method: preference, path: "embedded:remarks", columns: {_PAIR}, limit: 16}}',
    "ppo": '{method: prompts, path: "embedded:remarks", columns: {answers: aliases}, limit: 16}',
    "grpo": '{method: prompts, path: "embedded:remarks", columns: {answers: aliases}, limit: 16}',
    "gkd": '{method: prompts, path: "embedded:remarks", columns: {answers: aliases}, limit: 16}',
    "kto": '{method: unpaired, path: "FOLDER/unpaired.jsonl"}',
    "classification": '{method: classification, path: "embedded:preferences", limit: 16,'
    ' columns: {text: "{prompt}{rejected}", label: kind}}',
}
TYPES = {  # the model's, the stage's, how far a loss may be from the CPU's
    "float32": ("dtype: float32", "bf16: false", 2e-3),
    "bf16, checkpointed": ("dtype: bfloat16", "bf16: true, gradient_checkpointing: true", 5e-2),
    "4 bits": ("dtype: bfloat16, quantization: {load_in_4bit: true}", "bf16: true", None),
    "8 bits": ("dtype: bfloat16, quantization: {load_in_8bit: true}", "bf16: true", None),
}


def recipe(model: Path, out: str, adapter: str, alignment: str, types: str) -> str:
    """Return a recipe of one stage, two steps of two passes of two rows."""
    data = DATA.get(alignment, DATA["pairs"]).replace("FOLDER", str(Path(out).parent))
    of_model, of_stage, _ = TYPES[types]
    return f"""recipe: 1
name: check
output_dir: {out}
model: {{path: "{model}", {of_model}}}
stages:
  - name: s
    adapter: {ADAPTERS[adapter]}
    alignment: {ALIGNMENTS[alignment].replace("MODEL", str(model))}
    data: {data}
    train: {{max_steps: 2, per_device_train_batch_size: 2, gradient_accumulation_steps: 2,
            save_strategy: epoch, {of_stage}}}
trackers: [{{method: jsonl}}]
"""


def methods(check: Check, seconds: float, most: int | None = None) -> None:
    """Run the cases, the most used first, and tell those that fail or differ from the CPU's."""
    from llmft.modeling.tiny_models import tiny_model_folder

    cases = [(a, b, t) for a in ADAPTERS for b in ALIGNMENTS for t in TYPES]
    cases = [c for c in cases if c[2][0] not in "48" or (c[1] in ("sft", "ppo") and c[0] != "full")]
    cases.sort(key=lambda c: (not (c[0] == "lora" or c[1] == "sft"), c[1] == "ppo"))
    begun, load_method, wrong = time.monotonic(), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        model = tiny_model_folder(Path(folder))
        rows = (json.dumps({"prompt": f"{n}?", "completion": f" {n}.", "label": n % 3 > 0})
                for n in range(16))  # fmt: skip
        Path(folder, "unpaired.jsonl").write_text("\n".join(rows))
        for adapter, alignment, types in cases[:most]:
            if time.monotonic() - begun > seconds:
                break
            load_method += 1
            case, within = f"{adapter} | {alignment} | {types}", TYPES[types][2]
            text = recipe(model, f"{folder}/out", adapter, alignment, types)
            try:
                there = _loss(check.device.type, text, folder)
                if within is None or "dropout" in adapter:  # other kernels, other masks
                    continue
                here = _loss("cpu", text, folder)
            except Exception as error:
                wrong += 1
                check.say(case=case, fails=f"{type(error).__name__}: {str(error)[:200]}")
                continue
            if not abs(there - here) <= within * max(1.0, abs(here)):
                wrong += 1
                check.say(case=case, device=there, cpu=here)
    check.say(cases=len(cases), load_method=load_method, wrong=wrong)


def _loss(device: str, text: str, folder: str) -> float:
    from accelerate import PartialState
    from accelerate.state import AcceleratorState

    from llmft.engine.session import run_recipe
    from llmft.recipes.load import load_recipe
    from llmft.registry.registry import Registry

    states: tuple[Any, ...] = (PartialState, AcceleratorState)
    for state in states:
        state._shared_state.clear()
    os.environ["ACCELERATE_USE_CPU"] = "true" if device == "cpu" else "false"
    try:
        if device == "cpu":
            PartialState(cpu=True)
        file = Path(folder, "recipe.yaml")
        file.write_text(text)
        registry = Registry.discover()
        summary = run_recipe(load_recipe(file, registry))
        return float(summary.stages["s"].metrics["train_loss"])
    finally:
        del os.environ["ACCELERATE_USE_CPU"]
        for state in states:
            state._shared_state.clear()


LENGTHS = (5, 64, 1, 130)


def attention(check: Check) -> None:
    """Tell the error of attention over rows end to end, and of its gradients, from float64's."""
    from llmft.modeling.attention import varlen_attention

    generator = torch.Generator().manual_seed(0)
    heads, few, width, total = 8, 2, 64, sum(LENGTHS)
    bounds = [0, *torch.tensor(LENGTHS).cumsum(0).tolist()]
    for what, learnt, options in (
        ("rows of many lengths", 0, {}),
        ("rows of one length", 0, {"bounds": [0, 50, 100, 150, 200]}),
        ("a window", 0, {"sliding_window": 40}),
        ("learnt keys before", 7, {}),
        ("a prompt shared", 0, {"shared": [(0, 0), (0, 0), (5, 30), (5, 64)]}),
    ):
        shapes = ((heads, total), (few, learnt + total), (few, learnt + total), (heads, total))
        numbers = [torch.randn(1, h, t, width, generator=generator) for h, t in shapes]
        found = []
        for place, dtype in ((check.device, torch.bfloat16), (torch.device("cpu"), torch.float64)):
            q, k, v, weight = (
                n.bfloat16().to(place, dtype).transpose(1, 2).contiguous().transpose(1, 2)
                for n in numbers
            )
            leaves = [t.requires_grad_() for t in (q, k, v)]
            given = {
                "cu_seq_lens_q": torch.tensor(options.get("bounds", bounds)),
                "shared_prefix": torch.tensor(options["shared"]) if "shared" in options else None,
                "sliding_window": options.get("sliding_window"),
            }
            out, _ = varlen_attention(None, *leaves, None, width**-0.5, **given)
            (out.transpose(1, 2) * weight).sum().backward()
            found.append([t.detach().double().cpu() for t in (out, *(x.grad for x in leaves))])
        names = ("out", "q", "k", "v")
        errors = {
            n: float((a - b).norm() / b.norm()) for n, a, b in zip(names, *found, strict=True)
        }
        check.say(attention=what, error={n: round(e, 5) for n, e in errors.items()})
        if not max(errors.values()) < 2e-2:
            raise AssertionError(f"attention over {what} is off by {errors}")
