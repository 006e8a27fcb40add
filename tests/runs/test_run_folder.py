"""One run from end to end: what it leaves behind, and that it can be done again to the bit."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time

import pytest
import torch

from llmft.api.errors import Interrupted, LlmftError, WaitsForPeople
from llmft.api.text_metrics import shown_score
from llmft.inference.answering import answer, load_run
from llmft.modeling.base_model import BaseModel
from llmft.recipes.load import load_recipe
from llmft.registry.registry import Registry
from llmft.runs import resuming, run_folder
from llmft.runs.run_folder import new_run_folder


def digest(folder) -> str:
    return hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()


@pytest.fixture
def finished(run, recipe):
    return run(recipe)


def test_a_run_leaves_everything_needed_to_understand_it(finished, recipe):
    folder = finished.folder
    stage = folder / "stages" / "sft"
    written = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert {
        "recipe.yaml", "resolved.yaml", "lock.json", "run.json", "log.txt",
        "stages/sft/adapter/adapter_config.json", "stages/sft/adapter/adapter_model.safetensors",
        "stages/sft/adapter/manifest.json", "stages/sft/metrics.jsonl", "stages/sft/result.json",
        "stages/sft/samples.jsonl", "stages/sft/preview.html",
    } <= written  # fmt: skip
    result = json.loads((stage / "result.json").read_text())
    assert result["produces"] == "policy"
    assert result["after"]["loss"] < result["before"]["loss"]
    assert result["after"]["perplexity"] == pytest.approx(math.exp(result["after"]["loss"]))
    assert set(result["before"]) == {"loss", "perplexity", "exact_match", "f1"}
    samples = [json.loads(line) for line in (stage / "samples.jsonl").read_text().splitlines()]
    assert [s["when"] for s in samples] == ["before"] * 8 + ["after"] * 8
    metrics = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    trained = [m for m in metrics if m.get("phase") == "train"]
    assert [m["step"] for m in trained] == [2, 4, 6]
    lock = json.loads((folder / "lock.json").read_text())
    assert lock["packages"]["torch"] == torch.__version__
    assert set(lock["model"]["sha256"]) >= {"config.json", "model.safetensors"}
    assert {p["method"] for p in lock["plugins"]} == {"lora", "sft", "jsonl", "console"}
    assert len(lock["rows_sha256"]["sft"]["train"]) == 64
    assert folder.stat().st_mode & 0o077 == 0


def test_the_adapter_lies_beside_a_card_that_says_how_well_it_does_and_how_to_load_it(
    finished, model_folder, rows_file
):
    folder = finished.folder / "stages/sft/adapter"
    card = (folder / "README.md").read_text("utf-8")
    result = finished.stages["sft"]
    for name in ("loss", "exact_match"):
        told = [
            shown_score(result.scores[when][name], 4) for when in ("before", "after", "difference")
        ]
        assert f"| {name} | {told[0]} | {told[1]} | {told[2]} |" in card
        assert told[0].startswith(f"{result.before[name]:.4f} [")
    assert f"Trained for 6 steps; mean training loss {result.metrics['train_loss']:.4f}." in card
    assert "| path | `rows.jsonl` |" in card
    lock = json.loads((finished.folder / "lock.json").read_text())
    assert lock["rows_sha256"]["sft"]["train"] in card
    assert f"(RUN is the folder of the run {finished.run_id})" in card
    assert '`llmft generate RUN "your question" --stage sft`' in card
    assert 'PeftModel.from_pretrained(model, "RUN/stages/sft/adapter")' in card
    assert "More Information Needed" not in card  # PEFT's template
    for place in (finished.folder.parent, model_folder.parent, rows_file.parent):
        assert str(place) not in card
    assert "README.md" in json.loads((folder / "manifest.json").read_text())["sha256"]


def test_a_model_that_cannot_be_loaded_is_named_with_the_recipes_line(
    run, recipe, model_folder, tmp_path
):
    place = shutil.copytree(model_folder, tmp_path / "broken")
    (place / "model.safetensors").write_bytes(b"no tensors")
    recipe["model"]["path"] = str(place)
    with pytest.raises(LlmftError) as caught:
        run(recipe)
    (fault,) = caught.value.faults
    assert (fault.code, fault.path) == ("E201", "model.path")
    assert "broken" in fault.place.source
    recipe["model"] |= {"path": str(model_folder), "tokenizer": str(tmp_path)}
    with pytest.raises(LlmftError) as caught:
        run(recipe)
    (fault,) = caught.value.faults
    assert (fault.code, fault.path) == ("E201", "model.tokenizer")
    assert str(tmp_path) in fault.place.source


def test_the_resolved_recipe_loads_to_the_same_recipe(finished):
    registry = Registry.discover()
    place = f"output_dir={finished.folder.parents[1]}"
    given = load_recipe(finished.folder / "recipe.yaml", registry, [place]).recipe
    resolved = load_recipe(finished.folder / "resolved.yaml", registry).recipe
    assert resolved == given


def test_the_same_recipe_gives_the_same_bits_in_another_folder(run, recipe, finished):
    again = run(recipe)
    assert again.folder != finished.folder
    place = "stages/sft/adapter"
    assert digest(again.folder / place) == digest(finished.folder / place)
    other = run(recipe, "seed=18")
    assert digest(other.folder / place) != digest(finished.folder / place)


def test_plain_peft_loads_what_was_trained(finished, model_folder):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(model_folder)
    model = PeftModel.from_pretrained(base, finished.folder / "stages" / "sft" / "adapter")
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    ids = tokenizer("say 3:", return_tensors="pt")
    out = model.generate(**ids, max_new_tokens=4, do_sample=False)
    expected = tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    (ours,) = answer(
        load_run(finished.folder, Registry.discover()),
        finished.folder,
        ["say 3:"],
        max_new_tokens=4,
    )
    assert ours == expected.strip()
    (plain,) = answer(
        load_run(finished.folder, Registry.discover()),
        finished.folder,
        ["say 3:"],
        max_new_tokens=4,
        with_adapter=False,
    )
    assert plain != ours


def test_an_override_is_used_and_recorded(run, recipe):
    summary = run(recipe, "stages.sft.train.max_steps=2")
    assert summary.stages["sft"].steps == 2
    noted = json.loads((summary.folder / "run.json").read_text())
    assert noted["overrides"][1:] == ["stages.sft.train.max_steps=2"]
    resolved = load_recipe(summary.folder / "resolved.yaml", Registry.discover()).recipe
    assert resolved.stages[0].train.max_steps == 2


def test_a_later_stage_goes_on_with_an_earlier_ones_adapter(run, recipe):
    second = {k: v for k, v in recipe["stages"][0].items() if k != "adapter"}
    recipe["stages"].append(second | {"name": "more", "start_from": "sft"})
    summary = run(recipe)
    first, more = summary.stages["sft"], summary.stages["more"]
    assert more.before["loss"] == pytest.approx(first.after["loss"], abs=1e-6)
    assert more.after["loss"] < more.before["loss"]


def test_a_stage_may_start_from_a_stage_of_an_earlier_run(run, recipe, finished):
    stage = {k: v for k, v in recipe["stages"][0].items() if k != "adapter"}
    recipe["stages"] = [stage | {"start_from": f"run:{finished.run_id}/sft"}]
    summary = run(recipe)
    expected = finished.stages["sft"].after["loss"]
    assert summary.stages["sft"].before["loss"] == pytest.approx(expected, abs=1e-6)
    recipe["stages"][0]["start_from"] = "run:nothing/sft"
    with pytest.raises(LlmftError, match="there is no run 'nothing'"):
        run(recipe)


def test_target_modules_are_held_against_the_model_before_anything_is_written(
    run, recipe, tmp_path
):
    recipe["stages"][0]["adapter"]["target_modules"] = ["q_proj", "query_key_value", "v_*"]
    with pytest.raises(LlmftError) as caught:
        run(recipe)
    (fault,) = caught.value.faults
    assert fault.path == "stages[0].adapter.target_modules[1]"
    assert "'query_key_value' matches no linear layer" in fault.what
    assert "q_proj" in fault.fix
    assert fault.place.line > 0
    assert not (tmp_path / "runs").exists()


def test_rows_longer_than_the_model_can_read_are_refused_with_the_line(run, recipe):
    recipe["stages"][0]["train"]["max_length"] = 512
    with pytest.raises(LlmftError, match="512 tokens does not fit the model's 256 positions"):
        run(recipe)


def test_gradient_checkpointing_changes_nothing_but_memory(run, recipe, finished):
    recipe["stages"][0]["train"]["gradient_checkpointing"] = True
    again = run(recipe)
    assert again.stages["sft"].after == pytest.approx(finished.stages["sft"].after, abs=1e-5)


def test_o4_an_output_folder_that_is_a_file_is_named(run, recipe, tmp_path):
    (tmp_path / "runs").write_text("not a folder")
    with pytest.raises(LlmftError) as caught:
        run(recipe)
    assert caught.value.exit_code == 4


def test_runs_of_one_second_get_names_of_their_own(tmp_path, recipe, monkeypatch):
    monkeypatch.setattr(time, "strftime", lambda form: "20260102-030405")
    (tmp_path / "r.yaml").write_text(json.dumps({**recipe, "output_dir": str(tmp_path)}))
    asked = load_recipe(tmp_path / "r.yaml", Registry.discover())
    made = [new_run_folder(asked.recipe).name for _ in range(3)]
    digest = made[0].rpartition("-")[2]
    assert made == [f"20260102-030405{n}-{digest}" for n in ("", "-2", "-3")]


@pytest.fixture
def begun(recipe, tmp_path):
    """Return a job of the recipe with overrides, and the folder of a run of it that has begun."""
    (tmp_path / "r.yaml").write_text(json.dumps({**recipe, "output_dir": str(tmp_path / "runs")}))

    def job(*overrides: str):
        return load_recipe(tmp_path / "r.yaml", Registry.discover(), overrides)

    first = job()
    folder = new_run_folder(first.recipe)
    run_folder.write_inputs(folder, first, BaseModel(first.recipe.model))
    return job, folder


def test_a_run_that_goes_on_writes_down_with_what(begun, monkeypatch):
    """What is edited, and in how many processes, is that of the next resume too."""
    make, folder = begun
    lock = json.loads((folder / "lock.json").read_text())
    assert lock["processes"] == 1
    job = make("stages.sft.train.learning_rate=0.5")
    previous = resuming.examine(job, folder)
    launched = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}  # fmt: skip
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    _, notes = run_folder.reopen(folder, job, BaseModel(job.recipe.model), previous, {"at": "x"})
    assert json.loads((folder / "lock.json").read_text())["processes"] == 2
    monkeypatch.undo()
    resolved = load_recipe(folder / "resolved.yaml", Registry.discover()).recipe
    assert resolved.stages[0].train.learning_rate == 0.5
    told = " | ".join(notes)
    assert "ended without notice at x" in told
    assert "edited since: stages.sft.train.learning_rate: 0.01 -> 0.5" in told
    (entry,) = json.loads((folder / "run.json").read_text())["resumed"]
    assert entry["edits"] == ["stages.sft.train.learning_rate: 0.01 -> 0.5"]


def test_whoever_is_waited_for_is_told_what_to_type(begun):
    make, folder = begun
    job = make("seed=4")
    resume = f"{folder} --resume --until sft --set seed=4"
    stopped = run_folder.saying_how_to_go_on(Interrupted(15, "stopped"), job, folder, "sft", False)
    assert (stopped.exit_code, stopped.faults[0].what) == (143, "stopped")
    assert stopped.faults[0].fix.startswith("continue with: ")
    assert stopped.faults[0].fix.endswith(resume)
    waits = run_folder.saying_who_ranks(WaitsForPeople("3 pairs"), job, folder, "sft", False)
    assert (waits.exit_code, waits.faults[0].what) == (9, "3 pairs")
    assert waits.faults[0].fix.startswith(f"rank with: llmft rank {folder}; then continue with: ")
    assert waits.faults[0].fix.endswith(resume)
    smoke = run_folder.saying_how_to_go_on(Interrupted(2, "stopped"), job, folder, None, True)
    assert smoke.faults[0].fix == "", "a smoke run is not gone on with"
