"""A plan's memory, against the same step on real tensors; and on whole processes, if slow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from llmft.modeling import recompute
from llmft.modeling.tiny_models import tiny_llama, tiny_model_folder
from llmft.planning.memory_tracker import (
    ACTIVATIONS,
    ADAPTER,
    CALLBACKS,
    GRADIENTS,
    OPTIMIZER,
    WEIGHTS,
    WORKSPACES,
    MemoryTracker,
)
from llmft.planning.planned_stage import PlannedStage
from llmft.planning.planner import plan_recipe
from llmft.training import loop
from tests.extended import extended

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "plan_memory.py"
CASES = {
    "lora": ({"method": "lora", "r": 4}, {}),
    "lora, checkpointing": ({"method": "lora", "r": 4}, {"gradient_checkpointing": True}),
    "lora, both ends": (
        {"method": "lora", "r": 4, "target_modules": ["q_proj", "embed_tokens", "lm_head"]},
        {},
    ),
    "dora": ({"method": "dora", "r": 4}, {}),
    "qlora": ({"method": "qlora", "r": 4}, {"gradient_accumulation_steps": 2}),
    "prefix": ({"method": "prefix"}, {"gradient_checkpointing": True}),
    "full": ({"method": "full"}, {}),
    "full, the last layer": ({"method": "full", "freeze_trainable_layers": 1}, {"bf16": True}),
    "bf16": ({"method": "lora", "r": 4}, {"bf16": True}),
}


def at_the_peak_of(context) -> dict[str, int]:
    """Train a stage for real; return what its peak holds, in bytes, by kind."""
    seen: dict[str, int] = {}

    def fit(items, objective):
        memory = MemoryTracker()
        for parameter in context.models.model.parameters():
            memory.add(parameter, ADAPTER if parameter.requires_grad else WEIGHTS)
        memory.begin("train")
        with memory:
            loop.train(context.models.model, items, objective, context.train, seed=17)
        memory.close()
        seen.update(memory.peaks[0].by_kind)

    context.fit = fit
    context.work.train(context)
    return seen


@pytest.mark.parametrize("case", extended(CASES, ("lora, checkpointing", "qlora", "full")))
def test_the_peak_is_that_of_the_real_step(case, recipe, stage_of, loaded, registry):
    adapter, train = CASES[case]
    stage = recipe["stages"][0]
    stage["adapter"] = adapter
    # One batch of all rows, so that both see the same one.
    stage["train"] = {"max_steps": 2, "per_device_train_batch_size": 40, **train}
    plan = plan_recipe(loaded(recipe)).stages[0]
    predicted = next(peak for peak in plan.peaks if peak.phase == "train")

    seen = at_the_peak_of(stage_of(recipe))
    held = {k: v for k, v in predicted.by_kind.items() if k != "mapped file"}
    constants = plan.peaks[0].by_kind.get(WEIGHTS, 0) - seen.get(
        WEIGHTS, 0
    )  # of 4-bit weights, and buffers
    assert sum(held.values()) - constants == pytest.approx(sum(seen.values()), rel=0.02)


@pytest.mark.extended
def test_layers_inputs_elsewhere_are_not_in_the_peak(
    recipe, stage_of, loaded, monkeypatch, tmp_path
):
    """Held against a real step whose layers' inputs are numpy's in the meantime."""

    def to_host(tensor):
        copy = tensor.numpy().copy()
        return lambda: torch.empty(copy.shape).copy_(torch.from_numpy(copy))

    monkeypatch.setattr(recompute, "to_host", to_host)
    config, found = tiny_llama().config, {}
    config.num_hidden_layers = 6
    model = tiny_model_folder(tmp_path / "deeper", LlamaForCausalLM(config))
    recipe["model"]["path"] = str(model)
    for offloads in (True, False):
        more = {"gradient_checkpointing": True, "activation_offloading": offloads}
        recipe["stages"][0]["train"] = {"max_steps": 2, "per_device_train_batch_size": 40, **more}
        plan = plan_recipe(loaded(recipe), in_ram=False).stages[0]
        predicted = next(peak for peak in plan.peaks if peak.phase == "train")
        seen = at_the_peak_of(stage_of(recipe))
        constants = plan.peaks[0].by_kind[WEIGHTS] - seen[WEIGHTS]
        tensors = predicted.tensors - predicted.by_kind[WORKSPACES]  # cuBLAS's, which no step shows
        assert tensors - constants == pytest.approx(sum(seen.values()), rel=0.02)
        found[offloads] = predicted.by_kind[ACTIVATIONS]
    inputs = plan.counts.tokens * config.hidden_size * 4
    # The peak is where the last layer is computed again, with 6 inputs; and then where the first
    # one is, with its own, and with the gradient of its output, which is as large.
    assert found[False] - found[True] == 4 * inputs


@pytest.mark.parametrize("stored", ["load_in_4bit", "load_in_8bit"])
@pytest.mark.parametrize("method", extended(["lora", "dora", "prefix", "prompt"], ["lora"]))
def test_a_quantised_base_is_followed_to_the_end(method, stored, recipe, loaded, registry):
    recipe["model"]["quantization"] = {stored: True}
    recipe["stages"][0]["adapter"] = {"method": method}
    recipe["stages"][0]["train"]["gradient_checkpointing"] = True
    plan = plan_recipe(loaded(recipe)).stages[0]
    assert plan.remarks == ()
    assert plan.peaks[-1].phase == "save"


def test_a_phase_is_told_by_what_its_bytes_are_for(recipe, stage_of, loaded, registry):
    recipe["stages"][0]["evaluate"] = {
        "metrics": ["loss", "exact_match"], "holdout": 0.2, "max_new_tokens": 4,
    }  # fmt: skip
    plan = plan_recipe(loaded(recipe)).stages[0]
    peaks = {peak.phase: peak.by_kind for peak in plan.peaks}
    assert list(peaks) == ["load", "prepare", "evaluate", "generate", "train", "save"]
    assert peaks["load"][ADAPTER] == 4 * plan.trainable_parameters
    # AdamW has two numbers for each that is trained, and a step count for each tensor.
    assert 8 <= peaks["train"][OPTIMIZER] / plan.trainable_parameters < 9
    # A Llama's cache: keys and values, 2 layers, 2 heads of 8, float32.
    longest = max(PlannedWidths(stage_of(recipe, PlannedStage)))
    assert peaks["generate"]["KV cache"] >= 8 * longest * 2 * 2 * 2 * 8 * 4


def PlannedWidths(stage: PlannedStage) -> list[int]:
    return [len(stage.data.encoder.prompt_ids(row.prompt)) for row in stage.data.held_out()]


def test_gradients_are_told_from_activations(recipe, stage_of):
    stage = recipe["stages"][0]
    stage["train"] = {"max_steps": 2, "gradient_accumulation_steps": 2}
    # A rank so high that the adapter outweighs the activations.
    stage["adapter"] = {"method": "lora", "r": 512}
    from llmft.planning.fake_tensors import ShapesOnly

    planned = stage_of(recipe, PlannedStage)
    planned.state.memory.begin("load")
    _ = planned.models.model
    with planned.state.memory, ShapesOnly():
        planned.work.train(planned)
    planned.state.memory.close()
    train = next(peak for peak in planned.state.memory.peaks if peak.phase == "train").by_kind
    assert train[GRADIENTS] == train[ADAPTER]


@pytest.mark.parametrize("scored", [False, True])
def test_an_average_is_held_beside_what_is_trained(scored, recipe, loaded):
    stage = recipe["stages"][0]
    stage["train"] |= {"save_strategy": "epoch", "save_total_limit": 2}
    stage["evaluate"] = {"metrics": ["loss"], "holdout": 0.2}
    stage["evaluate"] |= {"eval_strategy": "epoch"} if scored else {}
    stage["plugins"] = [{"method": "loss_watchdog", "threshold": 9.0}]
    plain = plan_recipe(loaded(recipe)).stages[0]
    stage["plugins"] = [{"method": "ema"}]
    plan = plan_recipe(loaded(recipe)).stages[0]
    average = 4 * plan.trainable_parameters
    before, after = (next(p for p in one.peaks if p.phase == "train") for one in (plain, plan))
    assert CALLBACKS not in before.by_kind
    assert after.by_kind[CALLBACKS] == average
    assert after.total == before.total + average
    (written,), (wanted,) = (
        [size for name, size in one.files if name.endswith("checkpoints, 2 kept")]
        for one in (plan, plain)
    )
    # In each of the two: the average, and the trained weights beside it.
    assert written - wanted == 2 * (average + average)


@pytest.mark.slow
def test_no_process_is_15_percent_off():
    done = subprocess.run([sys.executable, str(BENCHMARK)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
