"""What left a run is held against it: the same answers pass, and each way to part is named."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmft.api.errors import CheckpointError, LlmftError
from llmft.exporting.folders import export
from llmft.exporting.merging import merge
from llmft.inference.trained import TrainedStage, trained_stage
from llmft.system.bounded_child import BoundedChild, OutOfBounds
from llmft.verifying.export import verify_export
from tests.exporting.conftest import LORA, lora_run, rows_file, train  # noqa: F401 - fixtures

# ruff: noqa: F811 - fixtures by their names


@pytest.fixture(scope="module")
def made(lora_run, tmp_path_factory) -> tuple[TrainedStage, Path]:
    trained = trained_stage(lora_run)
    return trained, merge(trained, tmp_path_factory.mktemp("made") / "out").folder


@pytest.fixture
def spoilt(made, tmp_path) -> tuple[TrainedStage, Path]:
    """A copy of the merged folder, to be spoilt."""
    trained, folder = made
    shutil.copytree(folder, tmp_path / "out")
    return trained, tmp_path / "out"


def verify(made, **more):
    return verify_export(*made, prompts=4, max_new_tokens=8, **more)


def names(verdict) -> list[str]:
    return [check.what for check in verdict.checks if not check.fine]


def test_a_merged_folder_answers_as_the_run(made):
    verdict = verify(made)
    assert verdict.fine
    assert not verdict.causes
    assert verdict.distance.tokens > 30
    assert verdict.distance.max_logp < 1e-4
    assert not verify(made, tolerance=0.0).fine  # float32 sums in another order


def test_an_adapter_in_plain_peft_answers_as_the_run(lora_run, tmp_path):
    trained = trained_stage(lora_run)
    folder = export(trained, "peft", tmp_path / "out").folder
    assert verify((trained, folder)).fine


def test_a_soft_prompt_in_plain_peft_answers_as_the_run(train, tmp_path):
    trained = trained_stage(train({"method": "prompt", "num_virtual_tokens": 4}))
    folder = export(trained, "peft", tmp_path / "out").folder
    assert verify((trained, folder)).fine


def test_other_weights_are_found(spoilt):
    weights = load_file(spoilt[1] / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"] *= 3
    save_file(weights, spoilt[1] / "model.safetensors", metadata={"format": "pt"})
    verdict = verify(spoilt)
    assert "log-probabilities, largest difference" in names(verdict)
    assert "token ids in" not in names(verdict)
    assert verdict.causes == (
        "weights: the folder's weights are not the run's base with its adapter",
    )


def test_another_dtype_has_another_tolerance_and_is_named(spoilt):
    weights = {
        k: v.to(torch.bfloat16) for k, v in load_file(spoilt[1] / "model.safetensors").items()
    }
    save_file(weights, spoilt[1] / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((spoilt[1] / "config.json").read_text())
    (spoilt[1] / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    verdict = verify(spoilt)
    assert verdict.fine
    assert 1e-4 < verdict.distance.max_logp < 0.5
    verdict = verify(spoilt, tolerance=1e-5)
    assert verdict.causes == ("dtype: the run computes in float32, the folder in bfloat16",)


def test_a_token_at_the_start_is_found(spoilt):
    path = spoilt[1] / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|end|>", "type_id": 0}},
                   {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<|end|>": {"id": "<|end|>", "ids": [256], "tokens": ["<|end|>"]}},
    }  # fmt: skip
    path.write_text(json.dumps(tokenizer))
    verdict = verify(spoilt)
    assert names(verdict) == ["token ids in"]
    (cause,) = verdict.causes
    assert "at the start of each text (256)" in cause


def test_settings_of_generation_that_act_are_found(spoilt):
    path = spoilt[1] / "generation_config.json"
    told = json.loads(path.read_text())
    path.write_text(json.dumps(told | {"repetition_penalty": 9.0}))
    verdict = verify(spoilt)
    assert names(verdict) == ["greedy answers"]
    assert "repetition_penalty" in verdict.causes[0]
    assert verdict.partings[0].what.startswith("token")


def test_another_chat_template_is_found(train, rows_file, tmp_path):
    chats = tmp_path / "chats.jsonl"
    said = [(f"say {n}", str(n % 7)) for n in range(20)]
    rows = [
        {"messages": [{"role": "user", "content": a}, {"role": "assistant", "content": b}]}
        for a, b in said
    ]
    chats.write_text("".join(json.dumps(row) + "\n" for row in rows))
    trained = _chat_run(chats, tmp_path)
    folder = merge(trained, tmp_path / "out").folder
    assert verify((trained, folder)).fine
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    verdict = verify((trained, folder))
    assert names(verdict) == ["token ids in"]
    assert verdict.causes[0].startswith("template: ")


def _chat_run(rows: Path, folder: Path) -> TrainedStage:
    from llmft.engine.session import run_recipe
    from llmft.modeling.tiny_models import tiny_model_folder
    from llmft.recipes.load import load_recipe
    from llmft.registry.registry import Registry
    from tests.exporting.conftest import TEMPLATE

    stage = {"name": "sft", "adapter": LORA, "alignment": {"method": "sft"},
             "data": {"method": "chat", "path": str(rows)}, "train": {"max_steps": 1}}  # fmt: skip
    model = {"path": str(tiny_model_folder(folder / "model")), "chat_template": TEMPLATE}
    data = {"recipe": 1, "name": "chat", "output_dir": str(folder / "runs"), "model": model,
            "stages": [stage], "trackers": []}  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(data))
    return trained_stage(run_recipe(load_recipe(path, Registry.discover())).folder)


def test_a_folder_of_something_else_is_refused(made, tmp_path):
    with pytest.raises(CheckpointError, match="neither a model's folder"):
        verify_export(made[0], tmp_path)


def test_the_command_says_where_they_part_and_fails(made, spoilt, capsys):
    from llmft.cli.main import main

    run, few = str(made[0].run), ["--prompts", "3", "--max-new-tokens", "4"]
    assert main(["verify", "export", run, str(made[1]), *few]) == 0
    assert "answers as the run does" in capsys.readouterr().out
    path = spoilt[1] / "generation_config.json"
    path.write_text(json.dumps({"repetition_penalty": 9.0}))
    assert main(["verify", "export", run, str(spoilt[1]), *few]) == 6
    told = capsys.readouterr().err
    assert "DIFFERS" in told
    assert "error[E407]" in told
    assert "  target: " in told


# --- folders from elsewhere ------------------------------------------------------------------


@pytest.fixture
def exported(made, tmp_path) -> tuple[TrainedStage, Path]:
    """An adapter's folder as PEFT takes it, to be spoilt."""
    return made[0], export(made[0], "peft", tmp_path / "adapter").folder


def refusal(made) -> LlmftError:
    """Return why a folder is refused; fail where that takes long."""
    began = time.monotonic()
    with pytest.raises(LlmftError) as caught:
        verify(made)
    assert time.monotonic() - began < 60
    return caught.value


def change(folder: Path, name: str, **settings: object) -> None:
    path = folder / name
    told = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(told | settings))


@pytest.mark.parametrize(("settings", "named"), [
    ({"target_modules": "(a|a)*(a|a)*$"}, "target_modules"),
    ({"megatron_config": {"a": 1}, "megatron_core": "antigravity"}, "megatron_config"),
    ({"auto_mapping": {"base_model_class": "x", "parent_library": "antigravity"}}, "auto_mapping"),
    ({"corda_config": 3, "r": 10**9}, "corda_config, r"),
])  # fmt: skip
def test_an_adapters_settings_that_act_must_be_the_runs(exported, settings, named):
    change(exported[1], "adapter_config.json", **settings)
    error = refusal(exported)
    assert error.faults[0].code == "E407"
    assert f"has another {named}" in error.faults[0].what


@pytest.mark.parametrize("name", ["tokenizer.json", "x.safetensors", "anything"])
def test_a_pipe_in_an_adapters_folder_is_refused(exported, name):
    (exported[1] / name).unlink(missing_ok=True)
    os.mkfifo(exported[1] / name)
    assert refusal(exported).faults[0].code == "E605"


def test_code_in_an_adapters_folder_is_refused(exported):
    change(exported[1], "tokenizer_config.json", auto_map={"AutoTokenizer": ["x.X", None]})
    assert refusal(exported).faults[0].code == "E601"


def test_weights_that_cannot_be_read_are_named(exported, spoilt):
    for made, name in ((exported, "adapter_model.safetensors"), (spoilt, "model.safetensors")):
        path = made[1] / name
        path.write_bytes(path.read_bytes()[:-9])
        error = refusal(made)
        assert error.faults[0].code == "E201"
        assert str(made[1]) in error.faults[0].what


def test_the_folders_tokenizer_is_asked_in_bounded_time(spoilt, monkeypatch):
    def ask(self, question):
        raise OutOfBounds("did not end within 5 seconds")

    path = spoilt[1] / "tokenizer.json"
    told = json.loads(path.read_text())
    split = {"type": "Split", "pattern": {"Regex": "(x+x+)+y"}, "behavior": "Isolated",
             "invert": False}  # fmt: skip
    told["pre_tokenizer"] = split
    path.write_text(json.dumps(told))
    monkeypatch.setattr(BoundedChild, "ask", ask)
    assert refusal(spoilt).faults[0].code == "E212"


@pytest.mark.parametrize("settings", [
    {"penalty_alpha": 0.6, "top_k": 4}, {"prompt_lookup_num_tokens": 3}, {"dola_layers": "high"},
    {"num_return_sequences": 9}, {"force_words_ids": [[3]]},
])  # fmt: skip
def test_another_way_to_generate_is_refused(spoilt, settings):
    change(spoilt[1], "generation_config.json", **settings)
    assert refusal(spoilt).faults[0].code in ("E407", "E201")


def test_settings_that_cannot_generate_are_named(spoilt):
    change(spoilt[1], "generation_config.json", stop_strings=["x"])
    error = refusal(spoilt)
    assert error.faults[0].code == "E201"
    assert "stop" in error.faults[0].what
