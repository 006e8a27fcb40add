"""Recipes from Python: what the page shows works, and does what the command line does."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from enum import StrEnum
from pathlib import Path

import numpy as np
import pytest
from ruamel.yaml import YAML

from llmft import notebook
from llmft.api import LlmftError, TrainSettings
from llmft.cli.main import main
from llmft.runs.run_folder import as_yaml

PAGE = Path(__file__).parents[2] / "docs" / "notebook.md"
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def stage(**changes):
    return {
        "name": "sft",
        "adapter": {"method": "lora", "r": 4},
        "alignment": {"method": "sft"},
        "data": {"method": "triviaqa", "path": "embedded:trivia", "limit": 8},
        "train": {"max_steps": 2, "logging_steps": 1, "per_device_train_batch_size": 2},
        **changes,
    }


def recipe(model="embedded:model", **changes):
    return {
        "recipe": 1,
        "name": "tiny",
        "model": {"path": str(model)},
        "stages": [stage(**changes)],
    }


def test_the_page_does_what_it_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    space: dict[str, object] = {}
    printed = ""
    for kind, text in BLOCK.findall(PAGE.read_text("utf-8")):
        if kind == "text":
            assert printed == text
            continue
        capsys.readouterr()
        exec(compile(text, "docs/notebook.md", "exec"), space)
        printed = capsys.readouterr().out
        if "notebook.run(" in text:
            lines = printed.splitlines()
            assert [line.partition(" {")[0] for line in lines] == [
                f"sft train {done}/25" for done in range(5, 26, 5)
            ]
    results = space["results"]
    assert isinstance(results, notebook.Results)
    sft = results.stages["sft"]
    assert sft.after["f1"] > sft.before["f1"]
    assert results.folder.parent == tmp_path / "runs" / "trivia"
    assert [step["step"] for step in sft.history if "loss" in step] == list(range(5, 26, 5))
    assert {row["metric"] for row in results.scores()} == {"exact_match", "f1"}
    assert {sample["when"] for sample in sft.samples} == {"before", "after"}
    assert notebook.results(results.folder) == results


def test_importing_it_and_loading_a_recipe_import_no_torch():
    program = (
        "import sys\nfrom llmft import notebook\nnotebook.load('quickstart')\n"
        "print([name for name in ('torch', 'transformers', 'pytest') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, env=os.environ
    )
    assert done.stdout.strip() == "[]"


def test_a_mapping_and_its_file_are_the_same_recipe(tmp_path):
    built = notebook.load(recipe(train=TrainSettings(max_steps=3, learning_rate=1e-3)))
    saved = built.save(tmp_path / "recipe.yaml")
    assert notebook.load(saved).resolved == built.resolved
    written = YAML(typ="safe").load(saved)
    assert written["stages"][0]["train"] == {"max_steps": 3, "learning_rate": 1e-3}
    assert built.resolved["stages"][0]["train"]["max_steps"] == 3
    with pytest.raises(FileExistsError):
        built.save(saved)


class Scheduler(StrEnum):
    COSINE = "cosine"


def test_values_of_other_libraries_become_plain_ones():
    train = {"learning_rate": np.float64(2e-3), "lr_scheduler_type": Scheduler.COSINE}
    stages = notebook.load(recipe(Path("embedded:model"), train=train)).resolved["stages"]
    assert stages[0]["train"]["learning_rate"] == 2e-3
    assert stages[0]["train"]["lr_scheduler_type"] == "cosine"


def test_overrides_are_typed_as_they_are_in_python():
    changes = {"seed": 5, "stages.sft.adapter.target_modules": ["q_proj"], "output_dir": "5"}
    loaded = notebook.load(recipe(), changes)
    assert (loaded.resolved["seed"], loaded.resolved["output_dir"]) == (5, "5")
    assert loaded.resolved["stages"][0]["adapter"]["target_modules"] == ["q_proj"]
    assert notebook.load(recipe(), ["seed=6"]).resolved["seed"] == 6


def test_every_mistake_is_told_at_once_as_on_the_command_line(tmp_path, capsys):
    wrong = recipe(adapter={"method": "lora", "lora_r": 8, "lora_dropout": 1.5})
    with pytest.raises(LlmftError) as caught:
        notebook.load(wrong)
    text = str(caught.value)
    assert [fault.code for fault in caught.value.faults] == ["E020", "E023"]
    assert "<recipe>:" in text
    assert "lora_r: 8\n" in text  # the line of the recipe, with a caret below
    assert caught.value._render_traceback_() == text.splitlines()

    path = tmp_path / "recipe.yaml"
    path.write_text(as_yaml(wrong))
    assert main(["validate", str(path)]) == 2
    assert capsys.readouterr().err.replace(str(path), "<recipe>").strip() == text


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({1, 2}, "stages[0].train.seed_of: a set cannot"),
        (len, "a builtin_function_or_method cannot"),
    ],
)
def test_a_value_that_yaml_cannot_have_is_named(value, said):
    with pytest.raises(LlmftError) as caught:
        notebook.load(recipe(train={"seed_of": value}))
    assert said in str(caught.value)


def test_validate_asks_the_model_too(model_folder):
    wrong = recipe(model_folder, adapter={"method": "lora", "target_modules": ["qproj"]})
    notebook.validate(wrong)
    with pytest.raises(LlmftError, match="qproj"):
        notebook.validate(wrong, model=True)


def test_a_run_can_stop_and_go_on(model_folder, tmp_path):
    two = recipe(model_folder)
    two["output_dir"] = str(tmp_path / "runs")
    two["stages"].append(stage(name="more", start_from="sft", adapter=None))
    loaded = notebook.load(two)
    first = notebook.run(loaded, until="sft", quiet=True)
    assert list(first.stages) == ["sft"]
    seen: list[tuple[str, str]] = []
    whole = notebook.run(
        loaded,
        resume=first.folder,
        quiet=True,
        on_progress=lambda told: seen.append((told.stage, told.phase)),
    )
    assert (whole.folder, list(whole.stages)) == (first.folder, ["sft", "more"])
    assert {name for name, phase in seen if phase == "train"} == {"more"}
    again = notebook.run(loaded, resume=first.folder, quiet=True)
    assert again == whole


def test_an_error_in_the_callback_ends_nothing(model_folder, tmp_path, capsys):
    def broken(progress):
        raise ValueError("mine")

    loaded = notebook.load(recipe(model_folder), {"output_dir": str(tmp_path)})
    assert notebook.run(loaded, on_progress=broken).stages["sft"].steps == 2
    assert capsys.readouterr().out.count("ValueError('mine')") == 1


def test_a_smoke_run_needs_no_model(tmp_path):
    loaded = notebook.load(recipe("meta-llama/Llama-3.1-8B"), {"output_dir": str(tmp_path)})
    results = notebook.run(loaded, smoke=True, quiet=True)
    assert results.stages["sft"].steps == 2
    assert json.loads((results.folder / "run.json").read_text())["smoke"] is True


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(LlmftError, match="is not a run folder"):
        notebook.results(tmp_path)


def test_own_code_runs_only_where_its_file_is_trusted(tmp_path, monkeypatch):
    from llmft.system import trust as trusting

    monkeypatch.chdir(tmp_path)
    code = "def rows():\n    return [{'prompt': f'{n}:', 'completion': ' a'} for n in range(4)]\n"
    (tmp_path / "my_rows.py").write_text(code)
    stage = {
        "name": "sft", "adapter": {"method": "lora", "r": 2}, "alignment": {"method": "sft"},
        "data": {"method": "python", "file": "my_rows.py"},
    }  # fmt: skip
    recipe = {"recipe": 1, "name": "own", "model": {"path": "embedded:model"}, "stages": [stage]}
    with pytest.raises(LlmftError, match="a recipe alone never runs code"):
        notebook.validate(recipe)
    try:
        notebook.trust("my_rows.py")
        notebook.validate(recipe)
    finally:
        trusting.revoke_all()


def test_lines_of_a_run_hold_what_was_written_and_a_damaged_file_is_named(tmp_path):
    told = notebook.Stage("sft", tmp_path, "policy", 1, {}, {}, {})
    sample = {"prompt": "a\u2028b\x85c", "answer": "d"}
    path = tmp_path / "samples.jsonl"
    path.write_text(json.dumps(sample, ensure_ascii=False) + '\n{"torn', "utf-8")
    assert told.samples == [sample]
    for text in ("[" * 100_000 + "\n", "1\n", "x\n"):
        path.write_text(text)
        with pytest.raises(LlmftError) as caught:
            _ = told.samples
        assert caught.value.faults[0].code == "E401"
    path.unlink()
    path.symlink_to("/dev/zero")
    assert told.samples == []
    path.unlink()
    path.touch()
    os.truncate(path, 2**40)
    with pytest.raises(LlmftError, match="damaged"):
        _ = told.samples


def test_results_of_a_folder_from_elsewhere_are_named_where_they_are_damaged(tmp_path):
    stage = tmp_path / "run/stages/sft"
    stage.mkdir(parents=True)
    result = {"produces": "policy", "steps": 1, "metrics": {}, "before": {}, "after": {}}
    (stage / "result.json").write_text(json.dumps(result))
    (tmp_path / "run/run.json").write_text('{"stages": ["sft"]}')
    assert notebook.results(tmp_path / "run").stages["sft"].steps == 1
    (tmp_path / "secret.jsonl").write_text("{}\n")
    (stage / "samples.jsonl").symlink_to(tmp_path / "secret.jsonl")
    with pytest.raises(LlmftError, match="is a link"):
        notebook.results(tmp_path / "run")
    (stage / "samples.jsonl").unlink()
    (stage / "result.json").write_text('{"produces": "policy"}')
    with pytest.raises(LlmftError, match="E401"):
        notebook.results(tmp_path / "run")
