"""`bf16: auto` is decided before a run, recorded, and kept; what a machine lacks is refused."""

from __future__ import annotations

import json

import pytest
import torch
from ruamel.yaml import YAML

from llmft.api.errors import CheckpointError, EnvironmentFault
from llmft.api.train_settings import TrainSettings
from llmft.engine import auto_precision, preflight, session
from llmft.modeling.base_model import BaseModel
from llmft.planning.planner import plan_recipe
from llmft.recipes.load import load_recipe
from llmft.registry.registry import Registry
from llmft.smoke.smoke import smoke_recipe
from llmft.system import machine, tf32
from llmft.training import loop


@pytest.fixture
def write(recipe, tmp_path):
    """Return what writes the recipe with some train settings, and loads it."""

    def write(overrides=(), *, dtype="auto", **train):
        recipe["stages"][0]["train"] |= train
        recipe["stages"][0].pop("evaluate", None)
        recipe["output_dir"] = str(tmp_path / "runs")
        recipe["model"]["dtype"] = dtype
        path = tmp_path / "recipe.json"
        path.write_text(json.dumps(recipe, indent=1))
        return load_recipe(path, Registry.discover(), overrides)

    return write


@pytest.fixture
def gpu(monkeypatch):
    """Return what says whether the device computes in bfloat16."""

    def gpu(has: bool):
        monkeypatch.setattr(machine, "computes_in_bfloat16", lambda: (has, "this card"))

    return gpu


@pytest.mark.parametrize(
    ("device", "supported", "value", "why"),
    [
        ("cpu", True, True, "this machine computes on the CPU, which has AMX"),
        ("cpu", False, False, "this machine computes on the CPU, which has no AMX"),
        ("cuda:0", True, True, "Card computes in bfloat16"),
        ("cuda:0", False, False, "Card has no instructions for bfloat16"),
    ],
)
def test_the_device_decides(monkeypatch, write, device, supported, value, why):
    def is_supported(including_emulation=True):
        return supported or including_emulation  # torch emulates it where a card has none

    monkeypatch.setattr(machine, "device", lambda: device)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Card")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
    monkeypatch.setattr(
        torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True, "amx_bf16": supported}
    )
    job = write(bf16="auto")
    found, remarks = auto_precision.decided(job, BaseModel(job.recipe.model))
    told = f"train.bf16: auto -> {str(value).lower()} here: {why}"
    assert remarks == {"sft": told}
    for recipe in (found.recipe, found.written):
        assert recipe.stages[0].train.bf16 is value
    assert found.stages[0].spec.train.under_autocast is value


def test_a_torch_that_does_not_tell_a_cpu_s_instructions_has_none(monkeypatch):
    monkeypatch.setattr(machine, "on_gpu", lambda: False)
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert machine.computes_in_bfloat16()[0] is False


def test_float16_weights_decide_first(write, gpu):
    gpu(True)
    job = write(bf16="auto", dtype="float16")
    found, remarks = auto_precision.decided(job, BaseModel(job.recipe.model))
    assert found.recipe.stages[0].train.bf16 is False
    assert "the weights are float16" in remarks["sft"]


def test_what_is_not_auto_is_left_alone(write, gpu):
    gpu(False)
    job = write(bf16=True)
    assert auto_precision.decided(job, BaseModel(job.recipe.model)) == (job, {})


def test_nothing_computes_before_it_is_decided():
    with pytest.raises(ValueError, match="decide it"):
        _ = TrainSettings(bf16="auto").under_autocast


@pytest.mark.parametrize("has", [True, False])
def test_a_run_computes_by_it_and_records_it(write, gpu, monkeypatch, capsys, has):
    gpu(has)
    seen = set()
    autocast = loop._Training._autocast

    def entered(training):
        seen.add(training.settings.under_autocast)
        return autocast(training)

    monkeypatch.setattr(loop._Training, "_autocast", entered)
    summary = session.run_recipe(write(bf16="auto"))
    resolved = YAML(typ="safe").load((summary.folder / "resolved.yaml").read_text())
    assert resolved["stages"][0]["train"]["bf16"] is has
    lock = json.loads((summary.folder / "lock.json").read_text())
    assert lock["numerics"] == {"sft": {"bf16": has}}
    assert seen == {has}
    assert f"auto -> {str(has).lower()} here" in capsys.readouterr().out


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("has", [True, False])
def test_a_resumed_run_keeps_it(write, gpu, has, finished):
    gpu(has)
    job = write(bf16="auto", save_strategy="steps", save_steps=2)
    folder = session.run_recipe(job).folder
    if not finished:
        (folder / "stages/sft/result.json").unlink()
    gpu(not has)
    with pytest.raises(CheckpointError) as caught:
        session.resume_recipe(write(bf16="auto"), folder)
    (fault,) = caught.value.faults
    then, now = str(has).lower(), str(not has).lower()
    assert (fault.code, fault.path) == ("E237", "stages[0].train.bf16")
    assert f"computes with bf16: {then}, and auto gives {now} on this machine" in fault.what
    assert fault.fix.startswith(f"write bf16: {then}")
    written = write((f"stages.sft.train.bf16={then}",))
    assert session.resume_recipe(written, folder).already_finished is finished
    gpu(has)
    assert session.resume_recipe(write(bf16="auto"), folder).already_finished


def test_a_plan_says_what_it_comes_to(write, gpu):
    gpu(False)
    job = write(bf16="auto")
    (here,) = plan_recipe(job).stages
    assert "train.bf16: auto -> false here: this card" in here.remarks
    plan = plan_recipe(job, gpu="H100")
    assert any("auto -> true: H100" in remark for remark in plan.stages[0].remarks)
    assert plan.recipe.stages[0].train.bf16 is True  # as the runs that its time is taken from


@pytest.mark.parametrize(("name", "code", "in_smoke", "more"), [
    ("tf32", "E238", None, {}),
    ("activation_offloading", "E239", False, {"gradient_checkpointing": True}),
])  # fmt: skip
def test_what_only_a_gpu_has_is_refused_where_a_run_begins_and_nowhere_else(
    write, tmp_path, monkeypatch, name, code, in_smoke, more
):
    job = write(**{name: True}, **more)
    plan_recipe(job, gpu="H100")
    with pytest.raises(EnvironmentFault) as caught:
        session.run_recipe(job)
    (fault,) = caught.value.faults
    assert (fault.code, fault.path) == (code, f"stages[0].train.{name}")
    assert not (tmp_path / "runs").exists()
    small, _, _ = smoke_recipe(job, tmp_path / "smoke")
    assert getattr(small.recipe.stages[0].train, name) is in_smoke
    monkeypatch.setattr(machine, "device", lambda: "cuda:0")
    monkeypatch.setattr(tf32, "misfit", lambda: "")
    assert not list(preflight._of_this_machine(job))


def test_tf32_is_on_in_a_stage_and_as_it_was_after_it(write, monkeypatch):
    monkeypatch.setattr(tf32, "misfit", lambda: "")
    precision: list[str] = []
    step = loop._Training._update

    def updated(training, *args):
        precision.append(torch.get_float32_matmul_precision())
        return step(training, *args)

    monkeypatch.setattr(loop._Training, "_update", updated)
    session.run_recipe(write(tf32=True, max_steps=1, full_determinism=True))
    assert precision == ["high"]
    assert torch.get_float32_matmul_precision() == "highest"


def test_what_a_gpu_rounds_is_recorded_and_told_apart(write, monkeypatch):
    from llmft.runs.provenance import numerics_of
    from llmft.runs.resuming import changed_environment

    assert "float32" not in numerics_of(TrainSettings())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    plain, rounded = (numerics_of(TrainSettings(tf32=asked)) for asked in (None, True))
    assert plain["float32"] == {"matmul": "ieee", "conv": "tf32", "rnn": "tf32"}
    assert set(rounded["float32"].values()) == {"tf32"}
    monkeypatch.undo()
    folder = session.run_recipe(write(max_steps=1)).folder
    lock = json.loads((folder / "lock.json").read_text())
    before, now = ({**lock, "numerics": {"sft": numerics}} for numerics in (plain, rounded))
    assert changed_environment(before, now) == ["float32 matmul of 'sft' ieee -> tf32"]


@pytest.mark.parametrize(
    ("train", "dtype", "fix"),
    [
        ({"bf16": True}, "float32", "train.bf16: false is likely"),
        ({}, "bfloat16", "model.dtype: float32 and train.bf16: false is likely"),
        ({}, "float32", None),
    ],
)
def test_a_plan_says_where_a_cpu_is_slower_in_bfloat16(write, monkeypatch, train, dtype, fix):
    def remarks(rate, **asked):
        monkeypatch.setattr(machine, "bfloat16_over_float32", lambda: rate)
        (stage,) = plan_recipe(write(dtype=dtype, **train), **asked).stages
        return [said for said in stage.remarks if "as fast as in float32" in said]

    slow = remarks(0.4)
    assert len(slow) == (fix is not None)
    assert all("0.4 times as fast" in said and fix in said for said in slow)
    assert remarks(0.95) == remarks(0.4, gpu="H100") == remarks(0.4, in_ram=False) == []
