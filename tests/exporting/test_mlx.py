"""A run for mlx-lm: the merged folder, with positions by the names that mlx-lm's classes read."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from llmft.cli.main import main
from llmft.exporting import mlx
from llmft.exporting.folders import export
from llmft.inference.trained import trained_stage
from llmft.modeling.tiny_models import tiny_llama, tiny_model_folder
from llmft.verifying.export import verify_export

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}


@pytest.fixture(scope="module")
def stretched(train, tmp_path_factory) -> Path:
    """A run on a base whose positions are far from every default."""
    model = tiny_llama()
    model.config.rope_parameters = {"rope_type": "default", "rope_theta": 500.0}
    base = tiny_model_folder(tmp_path_factory.mktemp("base"), model)
    return train(path=str(base), rope_scaling=YARN)


def test_positions_have_the_names_that_mlx_lm_reads():
    flat = {"model_type": "llama", "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
    assert mlx.with_older_names(flat) == flat | {"rope_theta": 5e5}
    rope = {"rope_type": "yarn", "rope_theta": 1e6, "partial_rotary_factor": 0.5, "factor": 4.0}
    found = mlx.with_older_names({"rope_parameters": rope})
    assert (found["rope_theta"], found["partial_rotary_factor"]) == (1e6, 0.5)
    assert found["rope_scaling"] == {"rope_type": "yarn", "type": "yarn", "factor": 4.0}
    layers = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    found = mlx.with_older_names({"text_config": {"rope_parameters": layers}})["text_config"]
    assert (found["rope_theta"], found["rope_local_base_freq"]) == (1e6, 1e4)
    assert found["rope_scaling"] == {"rope_type": "linear", "type": "linear", "factor": 8.0}
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25}
    neox = mlx.with_older_names({"model_type": "gpt_neox", "rope_parameters": rope})
    assert (neox["rotary_emb_base"], neox["rotary_pct"]) == (1e4, 0.25)
    assert mlx.with_older_names({"model_type": "gpt2"}) == {"model_type": "gpt2"}


def test_the_folder_is_the_merged_model_for_transformers_too(stretched, tmp_path):
    trained = trained_stage(stretched)
    made = export(trained, "mlx", tmp_path / "out")
    told = json.loads((made.folder / "config.json").read_text())
    assert told["rope_theta"] == 500.0
    assert told["rope_scaling"]["type"] == "yarn"
    config = AutoConfig.from_pretrained(made.folder)
    assert config.rope_parameters == {**trained.base.config.rope_parameters, "type": "yarn"}
    assert verify_export(trained, made.folder, prompts=2, max_new_tokens=4).fine
    assert made.error is not None


def test_the_command_is_told_and_what_mlx_lm_does_not_know_is_refused(
    lora_run, chat_run, tmp_path, monkeypatch, capsys
):
    words = ["export", str(lora_run), "--to", "mlx", "--output"]
    assert main([*words, str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert (
        f"use it: mlx_lm.generate --model {tmp_path}/out --prompt 'your question'"
        " --ignore-chat-template" in said
    )
    assert f"mlx_lm.convert --hf-path {tmp_path}/out -q --mlx-path {tmp_path}/out-4bit" in said
    made = export(trained_stage(chat_run), "mlx", tmp_path / "chat")
    assert "--ignore-chat-template" not in made.command
    monkeypatch.setattr(mlx, "TYPES", frozenset({"gpt2"}))
    assert main([*words, str(tmp_path / "other")]) == 2
    said = capsys.readouterr().err
    assert "mlx-lm 0.32.2 has no model of the type 'llama'" in said
    assert not (tmp_path / "other").exists()


READ = """
import json, sys
import mlx.core as mx
from mlx_lm import load
model, tokenizer = load(sys.argv[1])
logits = model(mx.array([json.loads(sys.argv[2])])).astype(mx.float32)
print(json.dumps(logits[0].tolist()))
"""


@pytest.mark.skipif(find_spec("mlx_lm") is None, reason="needs mlx-lm, on Linux with mlx[cpu]")
def test_mlx_lm_computes_what_transformers_computes(stretched, tmp_path):
    folder = export(trained_stage(stretched), "mlx", tmp_path / "out").folder
    ids = torch.randint(0, 256, (40,), generator=torch.Generator().manual_seed(0)).tolist()
    told = subprocess.run(
        [sys.executable, "-c", READ, str(folder), json.dumps(ids)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    theirs = torch.tensor(json.loads(told.strip().splitlines()[-1]))
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(folder).eval()
        ours = plain(input_ids=torch.tensor([ids])).logits[0]
    assert torch.allclose(ours, theirs, atol=1e-3), (ours - theirs).abs().max()
