"""What other people's code may do to a run: fail with its name, and nothing else."""

from __future__ import annotations

import hashlib
from pathlib import Path

from llmft.cli.main import main

FAILING = """
from llmft.api import Tracker, hookimpl
from llmft_alignments.sft import Sft

class Theirs(Sft):
    method = "theirs"

    def train(self, context):
        fit = context.fit
        def failing(items, objective):
            loss = objective.loss
            calls = []
            def broken(model, batch):
                calls.append(1)
                if len(calls) == 3:
                    raise IndexError("list index out of range")
                return loss(model, batch)
            objective.loss = broken
            return fit(items, objective)
        context.fit = failing
        return super().train(context)

@hookimpl
def llmft_alignments():
    return [Theirs]
"""


def test_p5_a_plugin_that_raises_in_a_step_is_named_and_the_checkpoint_is_intact(
    recipe_file, install, tmp_path, capsys
):
    install(FAILING, "llmft.alignments", "theirs")
    train = {"save_strategy": "steps", "save_steps": 1}
    path = recipe_file(alignment={"method": "theirs"}, train=train)
    assert main(["run", str(path), "--quiet"]) == 7
    said = capsys.readouterr().err
    assert said.startswith("error[E506] the alignment 'theirs' (llmft-theirs 1.2")
    assert "IndexError: list index out of range" in said
    assert "Traceback" not in said
    (folder,) = (run.parent for run in (tmp_path / "runs").rglob("run.json"))
    (report,) = folder.glob("logs/crash-*.txt")
    assert "in broken" in report.read_text()
    assert (folder / "stages/sft/checkpoints/step-2/manifest.json").is_file()


def test_p5_an_error_in_our_own_code_is_not_put_to_a_plugin(
    recipe_file, install, monkeypatch, capsys
):
    install(FAILING, "llmft.alignments", "theirs")
    from llmft.training import loop

    def broken(*args, **options):
        raise IndexError("ours")

    monkeypatch.setattr(loop, "train", broken)
    assert main(["run", str(recipe_file()), "--quiet"]) == 1
    assert "error[E900]" in capsys.readouterr().err


def test_t4_memory_that_is_out_while_a_model_is_loaded_is_the_machines_fault(
    recipe_file, monkeypatch, capsys
):
    from llmft.modeling.base_model import BaseModel

    def load(*args, **options):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")

    monkeypatch.setattr(BaseModel, "load", load)
    assert main(["run", str(recipe_file()), "--quiet"]) == 4
    said = capsys.readouterr().err
    assert "error[E205] out of memory outside of a training step" in said


LOOKING_ON = """
import random
from llmft.api import hookimpl

@hookimpl(wrapper=True)
def llmft_run_stage(stage, context):
    {before}
    result = yield
    {after}
    return result
"""
DRAWING = "import numpy, torch; random.random(); numpy.random.rand(); torch.rand(7)"


def adapter_hash(tmp_path: Path) -> str:
    files = (tmp_path / "runs").rglob("adapter_model.safetensors")
    newest = max(files, key=lambda path: path.stat().st_ctime_ns)
    return hashlib.sha256(newest.read_bytes()).hexdigest()


def test_p6_a_plugin_that_only_looks_on_changes_no_bit(recipe_file, install, tmp_path):
    install(LOOKING_ON.format(before=DRAWING, after=DRAWING), "llmft.plugins", "onlooker")
    adapter = {"lora_dropout": 0.3}
    assert main(["run", str(recipe_file(adapter=adapter)), "--quiet"]) == 0
    without = adapter_hash(tmp_path)
    assert main(["run", str(recipe_file(adapter=adapter, plugins=["onlooker"])), "--quiet"]) == 0
    assert adapter_hash(tmp_path) == without
