"""`llmft plan`: what it prints, what it says of too small a memory, what it leaves alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmft.api.errors import RecipeError
from llmft.cli.main import main
from llmft.modeling.tiny_configs import small_config
from llmft.modeling.tiny_models import tiny_model_folder, tiny_tokenizer
from llmft.planning.fitting import GIB, named_memory
from llmft.planning.planner import plan_recipe


@pytest.fixture
def recipe_file(recipe, tmp_path) -> Path:
    recipe["output_dir"] = str(tmp_path / "runs")
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    return path


def everything(folder: Path) -> dict[str, tuple[int, int]]:
    stats = {p: p.stat() for p in folder.rglob("*")}
    return {str(p): (s.st_size, s.st_mtime_ns) for p, s in stats.items()}


def test_it_prints_stages_memory_files_and_a_verdict_and_writes_nothing(
    recipe_file, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    before = everything(tmp_path)
    assert main(["plan", str(recipe_file)]) == 0
    text = capsys.readouterr().out
    assert "1. only: lora x sft on jsonl -> policy" in text
    assert "40 rows" in text
    assert "stages/only/adapter" in text
    assert "network\n  nothing\n" in text
    assert "\nfits: only needs" in text
    assert everything(tmp_path) == before


def test_it_tells_whom_the_network_s_trackers_would_tell(recipe, recipe_file, capsys, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(recipe_file.parent))
    recipe["trackers"] = [{"method": "jsonl"}, {"method": "wandb"}]
    recipe_file.write_text(json.dumps(recipe))
    assert main(["plan", str(recipe_file)]) == 0
    assert "network\n  tracker 'wandb' sends data to api.wandb.ai\n" in capsys.readouterr().out


def test_json_has_the_same_facts(recipe_file, capsys):
    assert main(["plan", str(recipe_file), "--json", "--gpu", "24GB"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["ok"]
    assert plan["fits"]
    assert plan["memory"]["total"] == 24 * GIB
    assert plan["stages"][0]["counts"]["steps"] == 20
    assert plan["stages"][0]["peak"]["phase"] == "train"


def test_a_small_gpu_is_told_with_what_to_change_and_no_weights_are_there(
    recipe, recipe_file, tmp_path, capsys
):
    from transformers import LlamaConfig

    folder = tmp_path / "large"  # a config and a tokenizer are all it takes
    LlamaConfig(
        hidden_size=2048, intermediate_size=5632, num_hidden_layers=1, num_attention_heads=16,
        vocab_size=32_000, architectures=["LlamaForCausalLM"],
    ).save_pretrained(folder)  # fmt: skip
    tiny_tokenizer().save_pretrained(folder)
    recipe["model"]["path"] = str(folder)
    recipe["stages"][0]["train"]["per_device_train_batch_size"] = 40
    recipe_file.write_text(json.dumps(recipe))
    assert main(["plan", str(recipe_file), "--gpu", "1GB", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert not plan["fits"]
    settings = [change["setting"] for change in plan["changes"]]
    first = "train.per_device_train_batch_size: 1 with gradient_accumulation_steps: 40"
    assert settings[0] == first
    assert "model.quantization.load_in_4bit: true" in settings
    peaks = [change["peak"] for change in plan["changes"]]
    assert peaks == sorted(peaks, reverse=True)


def test_what_the_model_refuses_is_an_error_with_its_place(recipe, recipe_file, capsys):
    recipe["stages"][0]["adapter"]["target_modules"] = ["query_key_value"]
    recipe_file.write_text(json.dumps(recipe))
    assert main(["plan", str(recipe_file)]) == 2
    assert "matches no linear layer" in capsys.readouterr().err


def test_steps_are_planned_with_noise_on_the_embeddings(recipe, recipe_file, capsys, monkeypatch):
    from llmft.planning import training_cost

    noisy, asked, peaks = training_cost.noisy_embeddings, set(), []
    monkeypatch.setattr(
        training_cost, "noisy_embeddings", lambda model, a: asked.add(a) or noisy(model, a)
    )
    for alpha in (None, 5.0):
        recipe["stages"][0]["train"]["neftune_noise_alpha"] = alpha
        recipe_file.write_text(json.dumps(recipe))
        assert main(["plan", str(recipe_file), "--json"]) == 0
        stage = json.loads(capsys.readouterr().out)["stages"][0]
        peaks.append(next(p["by_kind"] for p in stage["peaks"] if p["phase"] == "train"))
    peaks = [sum(by_kind.values()) for by_kind in peaks]
    assert peaks[0] <= peaks[1] < 1.2 * peaks[0]  # it is gone before the logits are there
    assert asked == {None, 5.0}


def test_stages_name_their_inputs(recipe, recipe_file, capsys):
    first = recipe["stages"][0]
    recipe["stages"].append({**first, "name": "more", "start_from": "only", "adapter": None})
    del recipe["stages"][1]["adapter"]
    recipe_file.write_text(json.dumps(recipe))
    assert main(["plan", str(recipe_file)]) == 0
    assert "2. more <- only: lora x sft" in capsys.readouterr().out


def test_rows_out_of_reach_are_assumed_and_that_is_said(recipe, recipe_file, capsys):
    recipe["stages"][0]["data"] = {"method": "triviaqa", "path": "nobody/nothing-of-this-name"}
    recipe["stages"][0]["train"]["max_length"] = 64
    recipe_file.write_text(json.dumps(recipe))
    assert main(["plan", str(recipe_file)]) == 0
    text = capsys.readouterr().out
    assert "the rows cannot be read from here" in text
    assert "memory is computed for rows of 64 tokens" in text


@pytest.mark.parametrize("text", ["", "24", "24GB", "24 GiB", "1.5g", "800MB"])
def test_gpu_takes_sizes(text):
    if not text:
        with pytest.raises(RecipeError, match="is not a memory size"):
            named_memory("big")
    else:
        assert named_memory(text).total > 0


def test_a_gpu_that_its_own_context_fills_is_refused():
    with pytest.raises(RecipeError, match="'600MB' is less than a GPU's own context takes"):
        named_memory("600MB")


@pytest.mark.extended
def test_alignments_with_a_reference_or_a_reward_model_are_followed(
    recipe, tmp_path, loaded, registry
):
    pairs = tmp_path / "pairs.jsonl"
    row = {"prompt": "say it:", "chosen": " yes, of course", "rejected": " no"}
    pairs.write_text("".join(json.dumps(row | {"prompt": f"say {n}:"}) + "\n" for n in range(12)))
    first = recipe["stages"][0] | {"data": {"method": "preference", "path": str(pairs)}}
    recipe["stages"] = [
        first | {"name": "reward", "alignment": {"method": "reward"}},
        first | {"name": "dpo", "alignment": {"method": "dpo"}},
        first
        | {"name": "orpo", "alignment": {"method": "orpo", "reward_model": "reward", "kl_coef": 1}},
    ]
    reward, dpo, orpo = plan_recipe(loaded(recipe)).stages
    assert [*reward.remarks, *dpo.remarks, *orpo.remarks] == []
    assert reward.trainable_parameters == dpo.trainable_parameters + 32  # the head
    peaks = {peak.phase: peak for peak in dpo.peaks}
    assert peaks["prepare"].total > peaks["load"].total  # the reference's likelihoods
    assert orpo.inputs == ("reward",)
    earlier = next(peak for peak in orpo.peaks if peak.phase == "prepare").by_kind
    assert earlier["earlier stages"] == 4 * reward.trainable_parameters


@pytest.mark.extended
def test_fused_experts_in_float32_are_followed_to_the_end(recipe, loaded, tmp_path):
    from transformers import AutoModelForCausalLM, MixtralConfig

    model = AutoModelForCausalLM.from_config(small_config(MixtralConfig()))
    recipe["model"]["path"] = str(tiny_model_folder(tmp_path, model))
    (stage,) = plan_recipe(loaded(recipe)).stages
    assert stage.followed
    assert {"load", "train", "save"} <= {peak.phase for peak in stage.peaks}
    assert not [remark for remark in stage.remarks if "without weights" in remark]
