"""`llmft run --smoke`: every shipped recipe's own code path, in seconds, and marked as such."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmft.cli import main
from llmft.commands import shipped
from llmft.errors import LlmftError
from llmft.families import FAMILIES, family_of
from llmft.reading.recipe import load_recipe
from llmft.registry import Registry
from llmft.smoke import smoke_recipe
from llmft.testing.models import tiny_gpt2, tiny_model_folder, tiny_tokenizer

RECIPE = """
recipe: 1
name: tiny
model: {{path: {model}}}
stages:
  - name: sft
    adapter: {adapter}
    alignment: {{method: sft}}
    data: {data}
    train: {train}
"""


@pytest.fixture(scope="module")
def registry():
    return Registry.discover()


@pytest.fixture
def write(tmp_path):
    def recipe(
        model="gpt2", adapter="{method: lora}", data="{method: triviaqa}", train="{}", more=""
    ):
        path = tmp_path / "recipe.yaml"
        text = RECIPE.format(model=model, adapter=adapter, data=data, train=train)
        path.write_text(text + more, "utf-8")
        return str(path)

    return recipe


@pytest.fixture
def smoked(registry, tmp_path):
    def make(path):
        return smoke_recipe(load_recipe(path, registry), tmp_path / "smoke", registry)

    return make


def run(capsys, recipe, folder):
    code = main(["run", recipe, "--smoke", "--json", "--output-dir", str(folder)])
    out, err = capsys.readouterr()
    return code, json.loads(out), err


@pytest.mark.parametrize("recipe", shipped.recipes(), ids=lambda recipe: recipe.name)
def test_every_shipped_recipe_smoke_runs(recipe, registry, tmp_path, capsys):
    code, summary, told = run(capsys, str(recipe.path), tmp_path)
    assert (code, summary.get("errors"), summary["smoke"]) == (0, None, True)
    assert "the scores mean nothing" in told
    written = json.loads((Path(summary["folder"]) / "run.json").read_text("utf-8"))
    assert written["smoke"] is True
    assert tmp_path in Path(summary["folder"]).parents
    asked = load_recipe(recipe.path, registry).recipe
    for stage in asked.stages:
        folder = Path(summary["folder"]) / "stages" / stage.name
        assert (folder / "result.json").is_file()
        resolved = load_recipe(Path(summary["folder"]) / "resolved.yaml", registry).recipe
        small = resolved.stage(stage.name)
        assert small.adapter == _without_sizes(stage.adapter, small.adapter)
        assert small.alignment == stage.alignment
        assert small.train.save_strategy == stage.train.save_strategy
        assert resolved.model.quantization == asked.model.quantization


def _without_sizes(asked, small):
    if asked is None:
        return None
    sizes = ("token_dim", "num_layers", "num_attention_heads")
    return asked.model_copy(update={n: None for n in sizes if hasattr(small, n)})


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model_type)
def test_each_family_has_a_tiny_model_with_the_layers_it_is_said_to_have(family, smoked, write):
    from llmft.models import empty_base

    names = {
        "gemma3_text": "google/gemma-3-1b-it", "phi3": "microsoft/phi-4", "phi": "microsoft/phi-2",
        "gpt_neox": "EleutherAI/pythia-70m", "opt": "facebook/opt-125m", "qwen2": "Qwen/Qwen2-7B",
        "roberta": "FacebookAI/roberta-base", "bert": "google-bert/bert-base-uncased",
    }  # fmt: skip
    path = names.get(family.model_type, f"some/{family.model_type}-7b")
    assert family_of(path) is family
    small, (note, *_) = smoked(write(model=path))
    model = empty_base(small.recipe.model)
    assert sum(p.numel() for p in model.parameters()) < 2_000_000
    found = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    assert set(family.layers) <= found
    assert "by its name" in note


def test_a_local_model_is_shrunk_and_keeps_its_tokenizer(smoked, write, tmp_path):
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = tiny_tokenizer(pad=True)
    folder = tiny_model_folder(tmp_path, tiny_gpt2(), tokenizer)
    small, (note, *_) = smoked(write(model=str(folder)))
    assert "a random gpt2" in note
    assert "by its name" not in note
    config = AutoConfig.from_pretrained(small.recipe.model.path)
    assert (config.model_type, config.num_hidden_layers) == ("gpt2", 2)
    loaded = AutoTokenizer.from_pretrained(small.recipe.model.path)
    assert loaded.get_vocab() == tokenizer.get_vocab()


def test_sizes_of_the_real_model_are_left_out_and_wrong_names_are_not(smoked, write, capsys):
    sizes = "{method: lora, layers_to_transform: [30, 31]}"
    small, notes = smoked(write(model="meta-llama/Llama-3.1-8B", adapter=sizes))
    assert small.recipe.stages[0].adapter.layers_to_transform is None
    assert any("layers_to_transform" in note for note in notes)
    names = "{method: lora, target_modules: [query_key_value]}"
    assert main(["run", write(adapter=names), "--smoke"]) == 2
    assert "'query_key_value' matches no linear layer" in capsys.readouterr().err


def test_every_change_is_an_override_and_the_text_stays(smoked, write):
    path = write(train="{max_length: 100000, packing: true, save_strategy: steps}")
    small, _ = smoked(path)
    assert small.smoke
    assert small.text == Path(path).read_text("utf-8")
    assert "stages.0.train.max_steps=2" in small.overrides
    train = small.recipe.stages[0].train
    assert (train.save_strategy, train.save_steps, train.packing) == ("steps", 1, True)
    assert train.max_length == 4096


def test_nobody_outside_is_told_and_nothing_is_sent(smoked, write):
    more = "trackers: [{method: console}, {method: wandb}]\npush_to_hub: {repo_id: me/it}\n"
    small, _ = smoked(write(more=more))
    assert [tracker.method for tracker in small.recipe.trackers] == ["console", "jsonl"]
    assert small.recipe.push_to_hub is None


def test_local_rows_are_used_as_they_are(smoked, write, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "a?", "answer": "b", "aliases": []}\n' * 3)
    small, _ = smoked(write(data=f"{{method: triviaqa, path: {rows}}}"))
    assert small.recipe.stages[0].data.path == str(rows)
    assert small.recipe.stages[0].data.limit == 16


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model": "some/thing"}, "its name tells no architecture"),
        ({"data": "{method: jsonl, path: nobody/rows}"}, "brings no example rows"),
    ],
)
def test_what_has_no_stand_in_is_refused(settings, said, smoked, write, monkeypatch):
    monkeypatch.setattr("llmft_datasets.jsonl.Jsonl.example_records", lambda self: ())
    with pytest.raises(LlmftError) as caught:
        smoked(write(**settings))
    assert said in caught.value.faults[0].what


def test_a_smoke_run_cannot_resume(write, capsys):
    assert main(["run", write(), "--smoke", "--resume"]) == 2
    assert "exclude each other" in capsys.readouterr().err
