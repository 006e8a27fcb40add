"""An adapter's folder for another program gives plain PEFT the run's answers, or is refused."""

from __future__ import annotations

import json
import shlex
import shutil
from itertools import pairwise

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmft.api.errors import CheckpointError, RecipeError
from llmft.exporting.folders import export
from llmft.inference.trained import trained_stage
from llmft.verifying.export import verify_export
from tests.exporting.conftest import LORA
from tests.exporting.test_merging import by_peft, logits, plain


def test_plain_peft_finds_the_base_and_answers_as_the_run(
    trained, lora_run, model_folder, tmp_path
):
    made = export(trained, "peft", tmp_path / "out")
    found = AutoPeftModelForCausalLM.from_pretrained(made.folder).eval()
    typed = {"PeftModel": PeftModel, "AutoModelForCausalLM": AutoModelForCausalLM}
    as_typed = eval(made.command, typed)
    assert torch.equal(logits(as_typed.eval()), logits(found))
    assert torch.equal(logits(found), logits(by_peft(lora_run, model_folder)))
    assert str(made.folder) in made.command
    assert 'model, "out")' in (made.folder / "README.md").read_text()


@pytest.mark.parametrize("change", ["other bytes", "a link"])
def test_an_adapter_that_changes_while_it_is_exported_is_not_passed_on(
    lora_run, tmp_path, monkeypatch, change
):
    """The run was checked when it was opened; what is copied is checked again."""
    run = tmp_path / "run"
    shutil.copytree(lora_run, run)
    trained = trained_stage(run)
    weights = trained.adapter_folder / "adapter_model.safetensors"
    if change == "a link":
        weights.unlink()
        (tmp_path / "secret").write_text("of another folder")
        weights.symlink_to(tmp_path / "secret")
    else:
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"E401.*changed while it was exported"):
        export(trained, "peft", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "secret") == ["run"]


def test_hf_is_the_merged_model(trained, lora_run, model_folder, tmp_path):
    made = export(trained, "hf", tmp_path / "out")
    assert torch.allclose(
        logits(plain(made.folder)), logits(by_peft(lora_run, model_folder)), atol=1e-4
    )
    assert made.error is not None
    assert made.command == f"vllm serve {made.folder}"


def test_vllm_is_told_the_base_the_rank_and_the_template(trained, model_folder, tmp_path):
    made = export(trained, "vllm", tmp_path / "out")
    words = shlex.split(made.command)
    assert words[:3] == ["vllm", "serve", str(model_folder)]
    options = dict(pairwise(words))
    assert options["--max-lora-rank"] == "8"  # the least it takes that holds rank 4
    assert options["--lora-modules"] == f"tiny={made.folder}"
    assert options["--chat-template"] == str(made.folder / "chat_template.jinja")
    assert "{% for m in messages %}" in (made.folder / "chat_template.jinja").read_text()
    config = json.loads((made.folder / "adapter_config.json").read_text())
    assert (config["r"], config["peft_type"]) == (4, "LORA")


@pytest.mark.parametrize(
    ("adapter", "why"),
    [
        ({"method": "dora", "r": 2}, "DoRA"),
        (LORA | {"bias": "all"}, "bias"),
        (LORA | {"modules_to_save": ["lm_head"]}, "lm_head"),
        (LORA | {"trainable_token_indices": [3]}, "rows of the embedding"),
        (LORA | {"target_modules": ["q_proj", "lm_head"]}, r"output layer \(lm_head\)"),
        (LORA | {"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"method": "prompt", "num_virtual_tokens": 4}, "PROMPT_TUNING"),
    ],
    ids=["dora", "bias", "modules_to_save", "token_rows", "lm_head", "rank_pattern", "prompt"],
)
def test_vllm_does_not_get_what_it_cannot_compute(adapter, why, train, tmp_path):
    trained = trained_stage(train(adapter))
    fix = "llmft serve RUN" if why == "PROMPT_TUNING" else "llmft export RUN --to hf"
    with pytest.raises(RecipeError, match=rf"{why}.*{fix}"):
        export(trained, "vllm", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("to", ["hf", "mlx"])
def test_a_merged_model_of_a_quantised_base_is_told_as_one(to, train, trained, tmp_path):
    quantised = train({"method": "qlora", "r": 4, "bnb_4bit_compute_dtype": "float32"})
    notes = export(trained_stage(quantised), to, tmp_path / "out").notes
    assert any("the base was quantised in training" in note for note in notes)
    notes = export(trained, to, tmp_path / "plain").notes
    assert not any("quantised" in note for note in notes)


def test_what_peft_does_not_know_is_refused(train, tmp_path):
    run = train()
    trained = trained_stage(run)
    config = trained.adapter_folder / "adapter_config.json"
    kept = config.read_bytes()
    config.unlink()  # as an adapter of a plugin that PEFT has no class for
    try:
        with pytest.raises(RecipeError, match="PEFT does not know"):
            export(trained, "peft", tmp_path / "out")
    finally:
        config.write_bytes(kept)


def test_the_command_prints_what_to_type(lora_run, tmp_path, capsys):
    from llmft.cli.main import main

    out = tmp_path / "out"
    assert main(["export", str(lora_run), "--to", "vllm", "--output", str(out)]) == 0
    assert "use it: vllm serve" in capsys.readouterr().out
    assert main(["export", str(lora_run), "--to", "peft", "--output", str(out)]) == 2


NEW_TOKENS = {"add_tokens": ["say "], "add_special_tokens": ["<end>"], "stop": ["<end>"]}


@pytest.fixture(scope="module")
def with_tokens(train, tmp_path_factory):
    """A run on a base without spare rows, whose recipe adds two tokens."""
    from llmft.modeling.tiny_models import tiny_model_folder
    from tests.modeling.test_new_tokens import full_llama

    base = tiny_model_folder(tmp_path_factory.mktemp("full"), full_llama(tied=False))
    return train(path=str(base), **NEW_TOKENS)


def test_rows_of_new_tokens_go_along_and_plain_peft_gives_the_runs_answers(with_tokens, tmp_path):
    stage = trained_stage(with_tokens)
    made = export(stage, "peft", tmp_path / "out")
    assert "resize_token_embeddings(259," in made.notes[0]
    assert "eos_token_id = [256, 258]" in made.notes[1]
    found = AutoPeftModelForCausalLM.from_pretrained(made.folder).eval()  # it reads the tokenizer
    ids = torch.tensor([[257, 49, 58, 258]])  # 'say 1:' and the end
    with torch.no_grad():
        ours, theirs = stage.model()(ids).logits, found(input_ids=ids).logits
    assert theirs.shape[-1] == 259
    assert torch.allclose(ours, theirs, atol=1e-5)
    start = stage.base.load({}, varlen=False).get_input_embeddings().weight[257]
    assert not torch.equal(found.get_input_embeddings()(torch.tensor(257)), start)  # it was trained


def test_a_merged_model_has_the_rows_and_the_tokenizer_of_new_tokens(with_tokens, tmp_path):
    stage = trained_stage(with_tokens)
    made = export(stage, "hf", tmp_path / "out")
    merged = plain(made.folder)
    ids = AutoTokenizer.from_pretrained(made.folder)("say 1:<end>")["input_ids"]
    assert ids == [257, 49, 58, 258]
    with torch.no_grad():
        ours = stage.model()(torch.tensor([ids])).logits
        assert torch.allclose(merged(torch.tensor([ids])).logits, ours, atol=1e-4)
    assert merged.generation_config.eos_token_id == [256, 258]
    assert verify_export(stage, tmp_path / "out").fine


@pytest.mark.extended
def test_an_adapters_answers_end_where_the_recipe_says(with_tokens, tmp_path):
    stage = trained_stage(with_tokens)
    made = export(stage, "peft", tmp_path / "out")
    prompts = [stage.base.tokenizer(f"say {n}:")["input_ids"] for n in range(20)]
    with torch.no_grad():
        first = {int(stage.model()(torch.tensor([ids])).logits[0, -1].argmax()) for ids in prompts}
    ends = {"stop": [stage.base.tokenizer.decode([token]) for token in first]}
    stage.base.__dict__["source"] = stage.base.source.model_copy(update=ends)
    assert verify_export(trained_stage(with_tokens), made.folder).fine
    assert verify_export(stage, made.folder).fine  # its answers are one token long
