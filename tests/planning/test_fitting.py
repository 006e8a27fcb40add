"""What a plan says to change where a memory is too small: only what helps, until it fits."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from llmft.api.model_settings import Quantization
from llmft.api.train_settings import TrainSettings
from llmft.planning import fitting, planner
from llmft.planning.fitting import GIB, Memory, changes, named_memory
from llmft.planning.processes import Processes

ROOM, TWO = 100, Processes(2)


def suggested(monkeypatch, before: int, *ideas: tuple[str, int]) -> list[tuple[str, int, bool]]:
    """Return what is said where each idea, with those before it that stay, has such a peak."""
    peak = SimpleNamespace(total=before)
    stage = SimpleNamespace(name="only", applied=())
    recipe = SimpleNamespace(stage=lambda name: stage)
    job = SimpleNamespace(
        with_stage=lambda recipe, spec: SimpleNamespace(
            with_stage=None, stage=lambda name: SimpleNamespace(spec=spec)
        )
    )
    stages = (SimpleNamespace(name="only", peak=peak),)
    plan = SimpleNamespace(job=job, base=None, recipe=recipe, stages=stages, processes=TWO)

    def apply(name: str):
        return lambda recipe, stage: (
            recipe, SimpleNamespace(name="only", applied=(*stage.applied, name))
        )  # fmt: skip

    peaks = dict(ideas)
    seen = []

    def plan_stage(job, bound, base, *, in_ram, processes):
        assert processes == TWO
        applied = bound.spec.applied
        seen.append(applied)
        return SimpleNamespace(peak=SimpleNamespace(total=peaks[applied[-1]]))

    monkeypatch.setattr(fitting, "_ideas", lambda *args: ((name, apply(name)) for name in peaks))
    monkeypatch.setattr(fitting, "plan_stage", plan_stage)
    found = changes(plan, Memory("a GPU", ROOM + 20, 20, False))
    kept = tuple(change.setting for change in found)
    assert seen[-1] == kept or seen[-1][:-1] == kept, "what does not help is not built upon"
    return [(change.setting, change.peak, change.fits) for change in found]


def test_a_suggestion_that_does_not_lower_the_peak_is_not_made(monkeypatch):
    made = suggested(monkeypatch, 200, ("a", 150), ("b", 150), ("c", 170), ("d", 90), ("e", 10))
    assert made == [("a", 150, False), ("d", 90, True)]


@pytest.mark.parametrize("first", [200, 220])
def test_neither_is_the_first_one(first, monkeypatch):
    assert suggested(monkeypatch, 200, ("a", first), ("b", 100)) == [("b", 100, True)]


def test_where_nothing_is_enough_all_that_helps_is_said(monkeypatch):
    assert suggested(monkeypatch, 200, ("a", 199), ("b", 101)) == [
        ("a", 199, False), ("b", 101, False)
    ]  # fmt: skip


@pytest.mark.parametrize(("peak", "tight"), [(100, False), (101, True)])
def test_a_stage_that_just_fits_needs_no_change(peak, tight, monkeypatch):
    monkeypatch.setattr(fitting, "_ideas", lambda *args: iter(()))
    monkeypatch.setattr(fitting, "plan_stage", None)
    asked = []
    stages = (SimpleNamespace(name="s", peak=SimpleNamespace(total=peak)),)
    recipe = SimpleNamespace(stage=asked.append)
    plan = SimpleNamespace(job=None, base=None, recipe=recipe, stages=stages, processes=TWO)
    assert changes(plan, Memory("m", 120, 20, True)) == []
    assert asked == ["s"] * tight


@pytest.mark.parametrize(
    ("text", "size"),
    [("24", 24 * GIB), ("1.5g", 1.5 * GIB), ("800MB", 800 * 2**20), ("2 GiB", 2 * GIB),
     ("900m", 900 * 2**20)],
)  # fmt: skip
def test_a_size_is_of_two_to_the_thirtieth(text, size):
    memory = named_memory(text)
    assert memory.total == size
    assert memory.room == size - 600 * 2**20
    assert not memory.in_ram


def test_an_idea_that_leaves_no_row_is_passed_over(recipe, loaded):
    recipe["stages"][0]["train"] |= {"per_device_train_batch_size": 1}
    plan = planner.plan_recipe(loaded(recipe), in_ram=False, gpu="H100")
    tight = Memory("a card", plan.stages[0].peak.total // 50, 0, False)
    found = changes(plan, tight)  # nothing helps so far, and the shortest rows lose their answers
    assert not any(change.fits for change in found)


def test_layers_are_divided_where_several_processes_can(recipe, loaded):
    plan = planner.plan_recipe(loaded(recipe), in_ram=False, gpu="H100", processes=TWO)
    job, stage = plan.job, plan.recipe.stages[0]
    card = Memory("a card", 1, 0, False)

    def said(job, stage, processes):
        return [idea for idea, _ in fitting._ideas(job, stage, plan.stages[0], card, processes)]

    assert "train.shard_base: true" in said(job, stage, TWO)
    assert "train.shard_base: true" not in said(job, stage, Processes(1))
    eight = plan.recipe.model.model_copy(update={"quantization": Quantization(load_in_8bit=True)})
    other = job.with_stage(plan.recipe.model_copy(update={"model": eight}), stage)
    assert "train.shard_base: true" not in said(other, stage, TWO)


def test_layers_are_not_divided_beside_an_average_of_their_weights(recipe, loaded):
    recipe["stages"][0] |= {"adapter": {"method": "full"}, "plugins": [{"method": "ema"}]}
    for method, divides in (("full", False), ("lora", True)):
        recipe["stages"][0]["adapter"] = {"method": method}
        job = loaded(recipe)
        assert fitting._divides(job, job.stages[0]) is divides


def ideas(train: dict, room: int, count: int = 1, **stage) -> list[str]:
    """Return what is thought of where 100 bytes are fixed, and 600 come with the batch."""
    adapter = SimpleNamespace(supports_gradient_checkpointing=False, supports_quantization=False)
    job = SimpleNamespace(stage=lambda name: SimpleNamespace(model_adapter=adapter, work=None))
    spec = SimpleNamespace(name="only", train=TrainSettings(**train), evaluate=None)
    peaks = [SimpleNamespace(total=100)]
    plan = SimpleNamespace(
        peaks=peaks, peak=SimpleNamespace(total=700), counts=SimpleNamespace(longest=100),
        quantization={}, **stage,
    )  # fmt: skip
    memory = fitting.Memory("a card", room, 0, False)
    return [said for said, _ in fitting._ideas(job, spec, plan, memory, Processes(count))]


def test_a_smaller_batch_keeps_the_rows_of_a_step():
    size = "train.per_device_train_batch_size: {} with gradient_accumulation_steps: {}"
    batch = {"per_device_train_batch_size": 7, "gradient_accumulation_steps": 3}
    # 3 of 7 rows are 100 + 257 bytes; 21 rows in passes of 3 are 7 of them.
    assert ideas(batch, 360) == [size.format(3, 7), size.format(1, 21)]
    assert ideas(batch, 350) == [size.format(1, 21)]
    odd = {"per_device_train_batch_size": 7}
    assert ideas(odd, 360) == [size.format(3, 3), size.format(1, 7)], "a part of one is a whole one"
    by_rows = {"per_device_train_batch_size": 4, "train_batch_size": 8}
    assert ideas(by_rows, 450) == [f"train.per_device_train_batch_size: {n}" for n in (2, 1)]
    # Of 8 rows two processes take 4 each, in one pass: of 2 rows each has to take two.
    assert ideas(by_rows, 450, 2) == ideas(by_rows, 450)
    more = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
    assert ideas(more, 420, 2) == [size.format(2, 2), size.format(1, 4)]
