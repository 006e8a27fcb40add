"""Runs of full fine-tuning: what they leave, what stands on them, and TRL's losses beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmft.api.errors import RecipeError
from llmft.api.push_settings import PushToHub
from llmft.engine.session import run_recipe
from llmft.exporting.folders import export
from llmft.exporting.merging import merge
from llmft.hub.upload import adapter_files
from llmft.inference.answering import answer, load_run, model_of_run
from llmft.inference.scoring import score_file
from llmft.inference.trained import TrainedStage
from llmft.modeling.base_model import BaseModel
from llmft.modeling.tiny_models import tiny_llama, tiny_model_folder, tiny_tokenizer
from llmft.recipes.load import load_recipe
from llmft.registry.registry import Registry
from llmft.testing import measures
from tests.extended import extended

PAIRS = [
    {"prompt": f"say {n}:", "chosen": f" {n % 7} it is", "rejected": " no", "completion": f" {n}"}
    for n in range(12)
]
CHAT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
TRAIN = {
    "max_steps": 3, "per_device_train_batch_size": 12, "learning_rate": 1e-3, "logging_steps": 1,
    "lr_scheduler_type": "constant",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread():
    with measures.one_thread():
        yield


@pytest.fixture(scope="module")
def registry():
    return Registry.discover()


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("full")
    tokenizer = tiny_tokenizer(pad=True)
    tokenizer.chat_template = CHAT
    tiny_model_folder(folder, tiny_llama(), tokenizer)
    rows = "".join(json.dumps(row) + "\n" for row in PAIRS)
    (folder / "rows.jsonl").write_text(rows)
    return folder


def stage(home: Path, name: str, method: str, adapter: dict | None, **extra) -> dict:
    path = str(home / "rows.jsonl")
    kind = {"sft": "jsonl", "ppo": "prompts"}.get(method, "preference")
    block = {
        "name": name, "alignment": {"method": method, **extra.pop("options", {})},
        "data": {"method": kind, "path": path}, "train": {**TRAIN, **extra.pop("train", {})},
        **extra,
    }  # fmt: skip
    return block | ({"adapter": adapter} if adapter else {})


def recipe(home: Path, *stages: dict, dtype: str = "float32") -> dict:
    return {
        "recipe": 1, "name": "full", "output_dir": str(home / "runs"),
        "model": {"path": str(home / "model"), "dtype": dtype}, "stages": list(stages),
        "trackers": [{"method": "jsonl"}],
    }  # fmt: skip


def loaded(home: Path, registry, data: dict):
    path = home / f"recipe-{len(list(home.glob('recipe-*')))}.yaml"
    path.write_text(json.dumps(data))
    return load_recipe(path, registry)


def losses(folder: Path, name: str) -> list[float]:
    lines = (folder / "stages" / name / "metrics.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    return [entry["loss"] for entry in entries if entry.get("phase") == "train"]


FULL = {"method": "full"}
LORA = {"method": "lora", "r": 2}
KTO = {"beta": 0.3, "desirable_weight": 1.2}
PPO = {
    "reward_model": "reward", "response_length": 4, "num_ppo_epochs": 2, "num_mini_batches": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def done(home, registry) -> Path:
    """A run of every alignment on full weights, and of adapters on what others made."""
    with measures.one_thread():
        data = recipe(
            home,
            stage(home, "sft", "sft", FULL | {"max_shard_size": "50KB"}),
            stage(home, "dpo", "dpo", None, start_from="sft"),
            stage(home, "kto", "kto", None, options=KTO, start_from="sft",
                  train={"per_device_train_batch_size": 24}),
            stage(home, "orpo", "orpo", FULL | {"freeze_trainable_layers": 1}),
            stage(home, "reward", "reward", FULL),
            stage(home, "ppo", "ppo", None, options=PPO, start_from="sft"),
            stage(home, "lora", "sft", LORA, start_from={"stage": "sft", "merge": True}),
            stage(home, "more", "dpo", None, start_from="lora"),
            stage(home, "again", "sft", LORA, start_from={"stage": "more", "merge": True}),
            stage(home, "on_lora", "sft", FULL, start_from={"stage": "again", "merge": True}),
            stage(home, "beside", "ppo", LORA, options=PPO,
                  start_from={"stage": "sft", "merge": True}),
        )  # fmt: skip
        return run_recipe(loaded(home, registry, data)).folder


def ours(done: Path, registry, name: str):
    job = load_run(done, registry)
    place = done / "stages" / name
    return model_of_run(job, job.stage(name), BaseModel(job.recipe.model), place, varlen=False)


def folder_of(done: Path, name: str) -> Path:
    return done / "stages" / name / "adapter"


@pytest.mark.parametrize(
    "name", extended(["sft", "dpo", "kto", "orpo", "ppo", "on_lora"], ("sft", "ppo", "on_lora"))
)
def test_plain_transformers_loads_what_a_stage_leaves(done, registry, home, name):
    plain = AutoModelForCausalLM.from_pretrained(folder_of(done, name))
    base = AutoModelForCausalLM.from_pretrained(home / "model")
    assert measures.same(measures.logits(plain), measures.logits(ours(done, registry, name)))
    assert not measures.same(measures.logits(plain), measures.logits(base))
    known = set(base.state_dict())
    assert set(plain.state_dict()) == known
    config = json.loads((folder_of(done, name) / "config.json").read_text())
    assert config == json.loads((home / "model" / "config.json").read_text())


def test_the_folder_is_sharded_with_tokenizer_template_and_card(done):
    folder = folder_of(done, "sft")
    assert len(list(folder.glob("model-0*.safetensors"))) == 4
    assert AutoTokenizer.from_pretrained(folder).chat_template == CHAT
    card = (folder / "README.md").read_text()
    assert 'library_name: "transformers"' in card
    assert "A model made with the method `full`" in card
    assert 'AutoModelForCausalLM.from_pretrained("RUN/stages/sft/adapter")' in card


def test_parts_that_are_frozen_stay_as_they_are(done, home):
    before = AutoModelForCausalLM.from_pretrained(home / "model").state_dict()
    after = AutoModelForCausalLM.from_pretrained(folder_of(done, "orpo")).state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if "layers.1." in name}


def test_adapters_on_merged_stages_are_as_peft_stacks_them(done, registry):
    plain = AutoModelForCausalLM.from_pretrained(folder_of(done, "sft"))
    model = PeftModel.from_pretrained(plain, folder_of(done, "more"))
    expected = measures.logits(model)
    assert measures.same(measures.logits(ours(done, registry, "more")), expected)
    merged = model.merge_and_unload(safe_merge=True)
    stacked = PeftModel.from_pretrained(merged, folder_of(done, "again"))
    found = measures.logits(ours(done, registry, "again"))
    torch.testing.assert_close(found, measures.logits(stacked))
    assert not measures.same(found, expected)


@pytest.mark.parametrize("name", ["sft", "again"])
def test_merge_writes_all_that_a_stage_stands_on(done, registry, tmp_path, name):
    trained = TrainedStage(load_run(done, registry), done, done / "stages" / name)
    merged = merge(trained, tmp_path / "merged", dtype="float32")
    assert merged.error.max_logp < 1e-4
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    expected = measures.logits(ours(done, registry, name))
    torch.testing.assert_close(measures.logits(plain), expected, atol=1e-5, rtol=1e-4)


def test_an_adapter_on_merged_stages_is_not_taken_for_one_on_the_base(done, registry, tmp_path):
    job = load_run(done, registry)
    trained = TrainedStage(job, done, done / "stages" / "again")
    with pytest.raises(RecipeError, match=r"E090.*sft, more merged into it"):
        export(trained, "peft", tmp_path / "peft")
    card = (folder_of(done, "again") / "README.md").read_text()
    assert "merged into it: `sft`, then `more`" in card
    assert "PeftModel" not in card
    sent = adapter_files(job, done, PushToHub(repo_id="me/it", stage="again"))
    config = json.loads(sent["adapter_config.json"])
    assert config["base_model_name_or_path"] == "model + sft + more"
    whole = adapter_files(job, done, PushToHub(repo_id="me/it", stage="sft"))
    assert {"config.json", "model.safetensors.index.json", "tokenizer.json"} <= whole.keys()
    assert 'AutoModelForCausalLM.from_pretrained("me/it")' in whole["README.md"].decode()


@pytest.mark.parametrize("name", ["ppo", "beside"])
def test_ppo_starts_at_its_reference_and_keeps_it(done, name):
    lines = (done / "stages" / name / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines]
    kls = [entry["kl"] for entry in steps if entry.get("phase") == "train"]
    # A reference that moved along with the policy would stay at 0.
    assert abs(kls[0]) < 1e-5
    assert abs(kls[-1]) > 1e-5


def test_a_reward_model_of_full_weights_scores_as_its_files_say(done, registry, home):
    from safetensors.torch import load_file

    records = score_file(load_run(done, registry), done, home / "rows.jsonl", stage="reward")
    plain = AutoModelForCausalLM.from_pretrained(folder_of(done, "reward"))
    head = load_file(folder_of(done, "reward") / "head.safetensors")["score.weight"]
    text = PAIRS[0]["prompt"] + PAIRS[0]["chosen"]
    tokenizer = tiny_tokenizer()
    ids = torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id]])
    with torch.no_grad():
        state = plain(ids, output_hidden_states=True).hidden_states[-1][0, -1]
    assert records[0]["chosen_score"] == pytest.approx(float(head[0] @ state), rel=1e-4)


def test_it_answers_and_can_be_the_model_of_another_recipe(done, registry, home):
    (text,) = answer(load_run(done, registry), done, ["say 3:"], stage="sft", max_new_tokens=3)
    data = recipe(home, stage(home, "next", "sft", LORA))
    data["model"]["path"] = str(folder_of(done, "sft"))
    other = run_recipe(loaded(home, registry, data)).folder
    assert (
        text == answer(load_run(done, registry), done, ["say 3:"], stage="sft", max_new_tokens=3)[0]
    )
    assert json.loads((other / "stages/next/result.json").read_text())["steps"] == 3


def test_losses_of_full_sft_are_trls(done, home, tmp_path):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    args = SFTConfig(output_dir=str(tmp_path), max_length=256, shuffle_dataset=False,
                     completion_only_loss=True, **of_trl())  # fmt: skip
    rows = [{"prompt": row["prompt"], "completion": row["completion"]} for row in PAIRS]
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(home / "model"), args=args,
        train_dataset=Dataset.from_list(rows), processing_class=tiny_tokenizer(pad=True),
    )  # fmt: skip
    assert losses(done, "sft") == pytest.approx(losses_of(trainer), rel=1e-5)


def test_losses_of_full_dpo_are_trls(done, home, tmp_path):
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    args = DPOConfig(output_dir=str(tmp_path), max_length=256, **of_trl())
    rows = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in PAIRS]
    start = folder_of(done, "sft")
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(start),
        ref_model=AutoModelForCausalLM.from_pretrained(start), args=args,
        train_dataset=Dataset.from_list(rows), processing_class=tiny_tokenizer(pad=True),
    )  # fmt: skip
    assert losses(done, "dpo") == pytest.approx(losses_of(trainer), rel=1e-4)


def test_losses_of_full_kto_are_trls(done, home, tmp_path):
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    of_all = of_trl() | {"per_device_train_batch_size": 24}
    args = KTOConfig(output_dir=str(tmp_path), max_length=256, **KTO, **of_all)
    rows = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in PAIRS]
    start = folder_of(done, "sft")
    trainer = KTOTrainer(
        model=AutoModelForCausalLM.from_pretrained(start),
        ref_model=AutoModelForCausalLM.from_pretrained(start), args=args,
        train_dataset=Dataset.from_list(rows), processing_class=tiny_tokenizer(pad=True),
    )  # fmt: skip
    found = losses(done, "kto")
    assert found == pytest.approx(losses_of(trainer), rel=1e-5)
    assert found[0] == pytest.approx(0.5 * (1.2 + 1) / 2)


def of_trl() -> dict:
    return {
        "max_steps": 3, "per_device_train_batch_size": 12, "learning_rate": 1e-3,
        "lr_scheduler_type": "constant", "logging_steps": 1, "report_to": [], "use_cpu": True,
        "gradient_checkpointing": False, "bf16": False, "disable_tqdm": True,
        "optim": "adamw_torch", "save_strategy": "no",
    }  # fmt: skip


def losses_of(trainer) -> list[float]:
    """Train with TRL, and return the loss of each step, unrounded as the trainer sums it."""
    seen: list[float] = []
    compute = trainer.compute_loss

    def watched(*args, **kwargs):
        found = compute(*args, **kwargs)
        seen.append(float((found[0] if isinstance(found, tuple) else found).detach()))
        return found

    trainer.compute_loss = watched
    trainer.train()
    return seen


# --- types of the weights


@pytest.mark.parametrize("pure", [False, True])
def test_bfloat16_weights_have_float32_masters_unless_told_otherwise(home, registry, pure):
    # A step of 1e-5 is less than half the distance of most weights to the next bfloat16.
    adapter = FULL | {"pure_bf16": pure, "trainable_parameters": ["q_proj"]}
    train = {"learning_rate": 1e-5, "max_steps": 40, "per_device_train_batch_size": 2}
    data = recipe(home, stage(home, "sft", "sft", adapter, train=train), dtype="bfloat16")
    done = run_recipe(loaded(home, registry, data)).folder
    before = tiny_llama().bfloat16().state_dict()
    after = AutoModelForCausalLM.from_pretrained(folder_of(done, "sft")).state_dict()
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}
    key = "model.layers.0.self_attn.q_proj.weight"
    large = before[key].abs() > 0.02
    moved = float((before[key] != after[key])[large].float().mean())
    assert (moved == 0) if pure else (moved > 0.5)
    told = (done / "log.txt").read_text() + (done / "stages/sft/metrics.jsonl").read_text()
    told += "".join(p.read_text() for p in done.glob("*.jsonl"))
    assert ("without float32 masters" in told) == pure
