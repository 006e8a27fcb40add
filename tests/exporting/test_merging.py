"""A merged model answers in plain transformers as its adapter does in plain PEFT."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmft.api.errors import CheckpointError, RecipeError
from llmft.exporting.merging import merge
from llmft.inference.trained import trained_stage
from llmft.system.fsio import verify_folder
from tests.exporting.conftest import TEMPLATE, tied_model

IDS = torch.arange(40, 80)[None]


def plain(folder: Path, dtype: str = "auto"):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def by_peft(run: Path, base: Path, dtype: str = "auto"):
    return PeftModel.from_pretrained(plain(base, dtype), run / "stages/sft/adapter").eval()


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits.float()


def test_plain_transformers_gives_what_plain_peft_gives(lora_run, trained, model_folder, tmp_path):
    made = merge(trained, tmp_path / "out")
    adapted = by_peft(lora_run, model_folder)
    assert not torch.allclose(logits(plain(model_folder)), logits(adapted), atol=0.05)
    assert torch.allclose(logits(plain(made.folder)), logits(adapted), atol=1e-4)
    wanted = adapted.merge_and_unload(safe_merge=True).state_dict()
    found = plain(made.folder).state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert made.error.max_logp < 1e-4
    assert made.error.tokens > 20


def test_the_folder_is_complete(trained, tmp_path):
    made = merge(trained, tmp_path / "out")
    assert AutoTokenizer.from_pretrained(made.folder).chat_template == TEMPLATE
    assert {"config.json", "generation_config.json", "model.safetensors", "README.md"} <= {
        path.name for path in made.folder.iterdir()
    }
    assert verify_folder(made.folder) == trained.run.name
    card = (made.folder / "README.md").read_text()
    assert "What merging changed" in card
    assert "| exact_match |" in card
    assert str(tmp_path) not in card


def test_weights_are_cut_into_shards(trained, tmp_path):
    made = merge(trained, tmp_path / "out", max_shard_size="50KB")
    shards = [name for name in made.files if name.endswith(".safetensors")]
    assert len(shards) > 1
    assert all(made.files[name] < 80_000 for name in shards)
    whole = merge(trained, tmp_path / "whole")
    assert torch.equal(logits(plain(made.folder)), logits(plain(whole.folder)))


def test_a_tied_bfloat16_base_keeps_its_dtype_and_its_answers(train, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tied")
    base = tied_model(folder)
    run = train(path=str(base), dtype="bfloat16")
    made = merge(trained_stage(run), folder / "out")
    found = plain(made.folder)
    assert made.dtype == "bfloat16"
    assert {p.dtype for p in found.parameters()} == {torch.bfloat16}
    embedding = found.get_input_embeddings().weight
    assert found.get_output_embeddings().weight is embedding
    assert torch.equal(embedding, plain(base).get_input_embeddings().weight)
    # bfloat16 has 8 bits: a logit near 1 is rounded to 0.004, and the layers add that up.
    assert torch.allclose(logits(found), logits(by_peft(run, base)), atol=0.06)
    settings = json.loads((made.folder / "generation_config.json").read_text())
    assert settings["temperature"] == 0.3


def test_another_dtype_is_written_where_it_is_asked_for(trained, tmp_path):
    made = merge(trained, tmp_path / "out", dtype="bfloat16")
    assert {p.dtype for p in plain(made.folder).parameters()} == {torch.bfloat16}
    assert 1e-5 < made.error.max_logp < 0.2


def test_a_quantised_base_is_merged_whole_and_the_error_is_stated(train, model_folder, tmp_path):
    run = train({"method": "qlora", "r": 4, "bnb_4bit_compute_dtype": "float32"})
    made = merge(trained_stage(run), tmp_path / "out")
    assert made.unquantised
    assert 1e-4 < made.error.max_logp < 1.0  # what four bits cost on this model
    assert torch.allclose(logits(plain(made.folder)), logits(by_peft(run, model_folder)), atol=1e-4)
    assert "quantised" in (made.folder / "README.md").read_text()


def test_a_soft_prompt_is_refused_with_its_reason(train, tmp_path):
    run = train({"method": "prompt", "num_virtual_tokens": 4})
    with pytest.raises(RecipeError, match=r"soft prompt stands in front.*--to peft"):
        merge(trained_stage(run), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(trained, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(RecipeError, match="is there already"):
        merge(trained, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_damaged_adapter_is_refused(lora_run, tmp_path):
    import shutil

    run = tmp_path / lora_run.name
    shutil.copytree(lora_run, run)
    weights = run / "stages/sft/adapter/adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CheckpointError, match="is damaged"):
        trained_stage(run)


@pytest.mark.parametrize("altered", [
    {"steps": "many"}, {"before": 5}, {"metrics": 3}, {"scores": [1]},
])  # fmt: skip
def test_a_result_that_no_run_wrote_is_named(altered, lora_run, tmp_path):
    import shutil

    run = tmp_path / lora_run.name
    shutil.copytree(lora_run, run)
    result = run / "stages/sft/result.json"
    result.write_text(json.dumps(json.loads(result.read_text()) | altered))
    with pytest.raises(CheckpointError, match=r"E401.*not as a run writes it"):
        merge(trained_stage(run), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_merge_that_changes_answers_in_float32_is_refused(trained, tmp_path, monkeypatch):
    def spoilt(self, model):
        merged = model.merge_and_unload()
        merged.model.layers[0].mlp.down_proj.weight.data *= 1.5
        return merged

    monkeypatch.setattr(type(trained.bound.model_adapter), "merge", spoilt)
    with pytest.raises(CheckpointError, match="E407"):
        merge(trained, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_says_what_was_made(lora_run, tmp_path, capsys):
    from llmft.cli.main import main

    out = tmp_path / "out"
    assert main(["merge", str(lora_run), "--output", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["dtype"] == "float32"
    assert told["error"]["max_logp"] < 1e-4
    assert main(["merge", str(lora_run), "--output", str(out)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main(["merge", str(lora_run), "--output", str(tmp_path / "b"), "--max-shard-size",
                 "big"]) == 2  # fmt: skip
