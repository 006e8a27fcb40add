"""`llmft run --smoke`: every shipped recipe's own code path, in seconds, and marked as such."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest

from llmft.api.errors import LlmftError
from llmft.cli.commands import shipped
from llmft.cli.main import main
from llmft.modeling.tiny_copy import shrunk
from llmft.modeling.tiny_models import tiny_gpt2, tiny_model_folder, tiny_tokenizer
from llmft.recipes.load import load_recipe
from llmft.registry.registry import Registry
from llmft.runs.run_folder import resolved_yaml
from llmft.smoke.smoke import smoke_recipe
from llmft.system.architectures import ARCHITECTURES_BY_NAME, architecture_of
from tests.extended import extended

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
        small, _, notes = smoke_recipe(load_recipe(path, registry), tmp_path / "smoke")
        return small, notes

    return make


def run(capsys, recipe, folder):
    code = main(["run", recipe, "--smoke", "--json", "--output-dir", str(folder)])
    out, err = capsys.readouterr()
    return code, json.loads(out), err


@pytest.mark.parametrize("name", extended(
    [recipe.name for recipe in shipped.recipes()],
    plain=["quickstart", "dora_triviaqa", "dpo_quick", "ppo_quick", "grpo_quick",
           "prefix_triviaqa", "gkd_gsm8k"],
))  # fmt: skip
def test_every_shipped_recipe_smoke_runs(name, registry, tmp_path, capsys):
    (recipe,) = (recipe for recipe in shipped.recipes() if recipe.name == name)
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
        wanted = _made_small(stage.alignment, registry)
        if hasattr(wanted, "teacher"):  # one of other numbers: the same would teach nothing
            there = {"path": str(Path(resolved.model.path).with_name("other"))}
            wanted = wanted.model_copy(update={"teacher": wanted.teacher.model_copy(update=there)})
            assert f"a second tiny model stands in for '{stage.alignment.teacher.path}'" in told
            before = json.loads((folder / "result.json").read_text("utf-8"))["before"]
            assert before["divergence"] > 1e-6
        assert small.alignment == wanted
        assert small.train.save_strategy == stage.train.save_strategy
        assert resolved.model.quantization == asked.model.quantization


def _made_small(asked, registry):
    """Return an alignment's settings with those changed that it says keep a smoke run quick."""
    if asked is None:
        return None
    return asked.model_copy(
        update=registry.method("alignment", asked.method)(asked).smoke_overrides()
    )


def _blocks(work, registry):
    """What a method changes for a smoke run, its nested blocks as settings."""
    return {
        name: registry.method("reward", value["method"]).Config(**value)
        if isinstance(value, dict)
        else value
        for name, value in work.smoke_overrides().items()
    }


PIPELINE = """
  - name: collect
    start_from: sft
    task: {method: collect, num_return_sequences: 3, max_new_tokens: 200}
    data: {method: prompts, path: nobody/prompts, chat: true}
    train: {per_device_eval_batch_size: 64}
  - name: rank
    task: {method: rank, samples: collect, raters: 2}
  - name: dpo
    start_from: sft
    alignment: {method: dpo}
    data: {method: from_stage, stage: rank}
    evaluate: {metrics: [], holdout: 500}
repeat: {stages: [collect, rank, dpo], rounds: 5}
"""


@pytest.mark.extended
def test_a_pipeline_is_smoked_in_two_rounds_without_people(write, tmp_path, capsys):
    path = write(model="some/llama-3-8b", more=PIPELINE)
    assert main(["run", path, "--smoke", "--output-dir", str(tmp_path / "runs")]) == 0
    out = capsys.readouterr().out
    assert "note: rank: length replaces its judge" in out
    assert "collect: example rows replace the data" in out
    (folder,) = (tmp_path / "runs").glob("*/runs/tiny/*")
    names = ["sft", "collect", "rank", "dpo", "collect-2", "rank-2", "dpo-2"]
    assert json.loads((folder / "run.json").read_text())["stages"] == names
    lines = (folder / "stages" / "collect-2" / "rows.jsonl").read_text("utf-8").splitlines()
    assert len(lines) == 16
    # 8 tokens; each is a byte to the stand-in, and a broken one is read as one character
    assert all(len(text) <= 8 for line in lines for text in json.loads(line)["completions"])


EARLIER = """
  - name: reward
    adapter: {method: lora, r: 4}
    alignment: {method: reward}
    data: {method: preference, path: nobody/pairs}
  - name: collect
    start_from: sft
    task: {method: collect, num_return_sequences: 3, max_new_tokens: 8}
    data: {method: prompts, path: nobody/prompts}
"""
LATER = """
recipe: 1
name: later
model: {path: some/llama-3-8b}
stages:
  - name: ppo
    start_from: run:ID/sft
    alignment: {method: ppo, reward_model: run:ID/reward, response_length: 4}
    data: {method: prompts, path: nobody/prompts}
    train: {save_strategy: steps}
  - name: rank
    task: {method: rank, samples: run:ID/collect, judge: {method: length, target: 9}}
"""


@pytest.mark.parametrize(
    "adapter",
    extended(
        ["{method: lora, layers_to_transform: [0, 17]}", "{method: prefix, num_virtual_tokens: 4}"],
        ["{method: lora, layers_to_transform: [0, 17]}"],
    ),
)
def test_a_smoke_run_goes_on_from_stand_ins_for_an_earlier_runs_stages(
    write, registry, tmp_path, capsys, adapter
):
    real = write(model="some/llama-3-8b", adapter=adapter, more=EARLIER)
    assert main(["run", real, "--smoke", "--output-dir", str(tmp_path / "first")]) == 0
    (first,) = (tmp_path / "first").glob("*/runs/tiny/*")
    home = tmp_path / "runs"
    shutil.copytree(first, home / "tiny" / first.name)
    # as if it had been of the real size, with many rows
    resolved = home / "tiny" / first.name / "resolved.yaml"
    resolved.write_text(resolved_yaml(load_recipe(real, registry).recipe))
    before = contents(home)

    later = tmp_path / "later.yaml"
    later.write_text(LATER.replace("ID", first.name))
    capsys.readouterr()
    assert main(["run", str(later), "--smoke", "--output-dir", str(home)]) == 0
    out = capsys.readouterr().out
    kind = adapter[9:].partition(",")[0]
    assert f"note: an untrained {kind} stands in for '{first.name}/sft'" in out
    assert f"note: an untrained lora stands in for '{first.name}/reward'" in out
    assert f"note: the first rows of '{first.name}/collect' are used in place of all" in out
    (folder,) = home.glob("*/runs/later/*")
    assert all((folder / "stages" / name / "result.json").is_file() for name in ("ppo", "rank"))
    (made,) = home.glob(f"*/runs/earlier/{first.name}")
    assert len((made / "stages/collect/rows.jsonl").read_text().splitlines()) == 16
    assert {p: d for p, d in contents(home).items() if p in before} == before


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_smoke_run_from_an_earlier_run_that_is_not_there_says_so(tmp_path, capsys):
    later = tmp_path / "later.yaml"
    later.write_text(LATER.replace("ID", "20260101-000000-abc"))
    assert main(["run", str(later), "--smoke", "--output-dir", str(tmp_path)]) == 6
    assert "there is no run '20260101-000000-abc'" in capsys.readouterr().err


def _without_sizes(asked, small):
    if asked is None:
        return None
    sizes = ("token_dim", "num_layers", "num_attention_heads")
    return asked.model_copy(update={n: None for n in sizes if hasattr(small, n)})


@pytest.mark.parametrize("family", ARCHITECTURES_BY_NAME, ids=lambda family: family.model_type)
def test_each_family_has_a_tiny_model_with_the_layers_it_is_said_to_have(family, smoked, write):
    from llmft.modeling.base_model import BaseModel

    names = {
        "gemma3_text": "google/gemma-3-1b-it", "phi3": "microsoft/phi-4", "phi": "microsoft/phi-2",
        "gpt_neox": "EleutherAI/pythia-70m", "opt": "facebook/opt-125m", "qwen2": "Qwen/Qwen2-7B",
        "roberta": "FacebookAI/roberta-base", "bert": "google-bert/bert-base-uncased",
    }  # fmt: skip
    path = names.get(family.model_type, f"some/{family.model_type}-7b")
    assert architecture_of(path) is family
    small, (note, *_) = smoked(write(model=path))
    model = BaseModel(small.recipe.model).empty()
    assert sum(p.numel() for p in model.parameters()) < 2_000_000
    found = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    assert set(family.layers) <= found
    assert "by its name" in note


_LONG = {
    "rope_type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48,
    "rope_theta": 1e4, "original_max_position_embeddings": 4096,
}  # fmt: skip


@pytest.mark.parametrize(("kind", "settings"), [
    ("phi3", {"rope_parameters": _LONG}),
    ("phi3", {"rope_parameters": _LONG, "partial_rotary_factor": 0.75,
              "num_attention_heads": 24, "num_key_value_heads": 8}),
    ("phi", {"partial_rotary_factor": 0.4}),
    ("deepseek_v3", {}),
    ("gptj", {}),
])  # fmt: skip
def test_heads_that_turn_in_a_way_of_their_own_are_shrunk_with_it(kind, settings):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = shrunk(AutoConfig.for_model(kind, **copy.deepcopy(settings)), 256)
    config.vocab_size, config.pad_token_id = 64, None
    model = AutoModelForCausalLM.from_config(config)
    logits = model(input_ids=torch.arange(40)[None] % 64).logits
    assert torch.isfinite(logits).all()


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
    assert small.source.text == Path(path).read_text("utf-8")
    assert "stages.0.train.max_steps=2" in small.source.overrides
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


def test_rules_about_columns_are_left_out_with_the_rows_that_have_them(smoked, write, tmp_path):
    rules = "drop: {where: [{column: language, equals: en}], longer_than: 99}"
    rules += ", replace: [{column: note, text: a, by: b}]"
    small, _ = smoked(write(data=f"{{method: jsonl, path: nobody/rows, {rules}}}"))
    data = small.recipe.stages[0].data
    assert (data.drop.where, data.drop.longer_than, data.replace) == ([], 99, [])
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b", "language": "de", "note": "a"}\n' * 3)
    shutil.rmtree(tmp_path / "smoke")
    small, _ = smoked(write(data=f"{{method: jsonl, path: {rows}, {rules}}}"))
    data = small.recipe.stages[0].data
    assert len(data.drop.where) == len(data.replace) == 1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model": "some/thing"}, "its name does not tell the architecture"),
        ({"data": "{method: jsonl, path: nobody/rows}"}, "has no example rows"),
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
