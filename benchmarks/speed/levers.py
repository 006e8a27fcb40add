"""Measure each lever: a pass forward and backward with all of them, and with one left out.

    python benchmarks/speed/levers.py [--tasks sft,dpo,reward] [--rounds 5] [--page]

One process, in turn, CPU seconds over the task's rows. Prints how many times as long the rows take
without a lever; the passes must agree on the loss. The reference, and logits at label positions
only, are what the harness compares as a whole: `run.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from contestants import HERE
from workload import TASKS, Task, rows, write_task

STEPS = 4
Way = Callable[[Any, Any], AbstractContextManager[None]]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", default="sft,dpo,reward")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--page", action="store_true", help="fill the table of the docs")
    asked = parser.parse_args()
    os.environ["LLMFT_CACHE"] = "off"
    import torch

    torch.set_num_threads(1)
    found = []
    for name in asked.tasks.split(","):
        row = {"task": name, **measure(replace(TASKS[name], steps=STEPS), asked.rounds)}
        found.append(row)
        print(json.dumps(row), flush=True)
    if asked.page:
        from page import fill

        fill("levers", found)
    (HERE / "levers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found), "utf-8")


def measure(task: Task, rounds: int) -> dict[str, float]:
    """Return for each lever how many times as long the rows take without it."""
    model, items, objective = prepared(task)

    def once() -> tuple[float, float]:
        began, total = time.process_time(), 0.0
        for start in range(0, len(items), task.batch):
            loss, _ = objective.loss(model, items[start : start + task.batch])
            loss.backward()
            total += float(loss.detach())
        model.zero_grad(set_to_none=True)
        return time.process_time() - began, total

    ways: dict[str, Way] = {"all": lambda *_: nullcontext(), **WITHOUT}
    if not task.in_pairs:
        del ways["a prompt computed once"]
    if task.alignment == "reward":
        del ways["no logit kept"]  # there are none
    taken: dict[str, list[float]] = {name: [] for name in ways}
    losses = {}
    for number in range(rounds + 1):
        for name, without in ways.items():
            with without(model, objective):
                seconds, losses[name] = once()
            if number:  # the first round warms up
                taken[name].append(seconds)
    worst = max(abs(loss - losses["all"]) / abs(losses["all"]) for loss in losses.values())
    if worst > 1e-4:
        raise SystemExit(f"the losses are {worst:.1e} apart: {losses}")
    return {
        name: statistics.median(
            mine / whole for mine, whole in zip(seconds, taken["all"], strict=True)
        )
        for name, seconds in taken.items()
        if name != "all"
    }


@contextmanager
def without_packing(model: Any, objective: Any) -> Iterator[None]:
    """Pad the rows; a prompt is then not shared either."""
    own = model.config._attn_implementation
    model.get_base_model().set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.get_base_model().set_attn_implementation(own)


@contextmanager
def without_own_layers(model: Any, objective: Any) -> Iterator[None]:
    """Let PEFT compute its layers."""
    from llmft_adapters.lora.layer import LoraForward

    layers = [m for m in model.modules() if isinstance(vars(m).get("forward"), LoraForward)]
    for layer in layers:
        del layer.forward
    try:
        yield
    finally:
        for layer in layers:
            layer.forward = LoraForward(layer)


@contextmanager
def without_frozen_head(model: Any, objective: Any) -> Iterator[None]:
    """Keep the logits of a pass, and let autograd go back through them."""
    from llmft.modeling import forward

    own = forward._separable_head
    forward._separable_head = lambda *_: None
    try:
        yield
    finally:
        forward._separable_head = own


@contextmanager
def without_sharing(model: Any, objective: Any) -> Iterator[None]:
    """Compute each answer's prompt."""
    objective.share = False
    try:
        yield
    finally:
        objective.share = True


@contextmanager
def without_narrowing(model: Any, objective: Any) -> Iterator[None]:
    """Compute the last layer's network at every position."""
    from llmft.modeling import last_layer

    own = last_layer.MOST
    last_layer.MOST = 0.0
    try:
        yield
    finally:
        last_layer.MOST = own


WITHOUT: dict[str, Way] = {
    "padding-free batches": without_packing,
    "a prompt computed once": without_sharing,
    "LoRA as one step of the graph": without_own_layers,
    "no logit kept": without_frozen_head,
    "the last layer's network where it is read": without_narrowing,
}


def prepared(task: Task) -> tuple[Any, list[Any], Any]:
    """Return the adapted model, the token rows, and the objective of a task."""
    from llmft_adapters.lora import Lora
    from llmft_alignments.dpo import Dpo, DpoItem, DpoObjective
    from llmft_alignments.reward import Reward, RewardObjective
    from llmft_alignments.sft import CompletionLoss
    from model_folder import broadcast_parameters, write_model

    from llmft.api import CompletionRow, PreferenceRow
    from llmft.api.model_settings import ModelSource
    from llmft.api.train_settings import TrainSettings
    from llmft.data.encoding import Encoder
    from llmft.data.pair_encoding import encode_pairs
    from llmft.modeling.base_model import BaseModel
    from llmft.modeling.heads import add_score_head

    with tempfile.TemporaryDirectory() as folder:
        write_task(Path(folder), task)
        write_model(Path(folder))
        source = ModelSource(path=str(Path(folder) / "model"))
        encoder = Encoder(BaseModel(source).tokenizer, task.shape.positions)
        lora = Lora(Lora.Config(method="lora", r=task.rank, lora_alpha=2 * task.rank))
        model = lora.attach(BaseModel(source).load({}, varlen=True))
    broadcast_parameters(model)
    model.train()
    settings = TrainSettings()
    if not task.in_pairs:
        texts = [CompletionRow(row["prompt"], row["completion"]) for row in rows(task)]
        return model, list(encoder.encode(texts, settings)[0]), CompletionLoss()
    texts = [PreferenceRow(row["prompt"], row["chosen"], row["rejected"]) for row in rows(task)]
    pairs = encode_pairs(encoder, texts, settings)[0]
    if task.alignment == "reward":
        add_score_head(model)
        broadcast_parameters(model)
        return model, list(pairs), RewardObjective(Reward.Config(method="reward"), share=True)
    items = [DpoItem(p.chosen, p.rejected, p.shared, p.margin, "", (-500.0, -500.0)) for p in pairs]
    return model, items, DpoObjective(Dpo.Config(method="dpo"), share=True)


if __name__ == "__main__":
    main()
