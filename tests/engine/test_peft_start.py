"""`start_from: peft:...`: an adapter that plain PEFT saved is gone on with, or refused by name."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path

import pytest
import torch
from peft import (
    C3AConfig,
    FourierFTConfig,
    HRAConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    MissConfig,
    OFTConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    RandLoraConfig,
    ShiraConfig,
    VBLoRAConfig,
    VeraConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from llmft.api.errors import CheckpointError, LlmftError, RecipeError
from llmft.engine.preflight import preflight, start_remarks
from llmft.engine.session import Part, resume_recipe, run_recipe
from llmft.inference.trained import trained_stage
from llmft.modeling.base_model import BaseModel
from llmft.modeling.tiny_models import tiny_model_folder
from llmft.recipes.load import load_recipe
from llmft.registry.registry import Registry
from llmft.system import fsio

QV = ["q_proj", "v_proj"]
LORA = {"method": "lora", "r": 4, "lora_alpha": 12, "target_modules": QV}
MADE = {
    "lora": LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=12, target_modules=QV),
    "dora": LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=8, use_dora=True, use_rslora=True, bias="none",
        target_modules=r".*\.(q_proj|down_proj)", modules_to_save=["lm_head"],
        rank_pattern={"layers.1.mlp.down_proj": 2}, alpha_pattern={"layers.1.mlp.down_proj": 16},
    ),
    "prefix": PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "prompt": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "ptuning": PromptEncoderConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=8
    ),
    "rslora": LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=12, use_rslora=True,
                         target_modules=QV),
    "pissa": LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=12, init_lora_weights="pissa",
                        target_modules=QV),
    "biased": LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=12, lora_bias=True,
                         target_modules=QV),
}  # fmt: skip
# PEFT's further methods: the config, and the rest of the block that describes its folder.
BRIDGED = {
    "vera": (VeraConfig(r=8, projection_prng_key=3, d_initial=0.3), {"projection_prng_key": 3}),
    "ia3": (IA3Config(feedforward_modules=["v_proj"]), {"feedforward_modules": ["v_proj"]}),
    "oft": (OFTConfig(oft_block_size=4, use_cayley_neumann=False), {"use_cayley_neumann": False}),
    "loha": (LoHaConfig(r=2, alpha=6, rank_dropout=0.1), {"r": 2, "alpha": 6}),
    "lokr": (LoKrConfig(r=2, alpha=6, decompose_both=True), {"alpha": 6, "decompose_both": True}),
    "vblora": (VBLoRAConfig(r=2, num_vectors=16, vector_length=8, topk=3), {"topk": 3}),
    "fourierft": (FourierFTConfig(n_frequency=40, random_loc_seed=5), {"random_loc_seed": 5}),
    "randlora": (RandLoraConfig(r=4, randlora_alpha=40), {"randlora_alpha": 40}),
    "c3a": (C3AConfig(block_size=4, init_weights=True), {"block_size": 4}),
    "hra": (HRAConfig(r=4, apply_GS=True, init_weights=False), {"apply_GS": True}),
    "shira": (ShiraConfig(r=2, random_seed=9), {"r": 2}),
    "miss": (MissConfig(r=4, init_weights="bat"), {"init_weights": "bat"}),
}  # fmt: skip
SIZES = {"vera": {"r": 8}, "oft": {"oft_block_size": 4}, "lokr": {"r": 2}, "randlora": {"r": 4},
         "vblora": {"r": 2, "num_vectors": 16, "vector_length": 8}, "hra": {"r": 4},
         "fourierft": {"n_frequency": 40}, "miss": {"r": 4}, "c3a": {"block_size": 8},
         "shira": {"r": 3}}  # fmt: skip
for name, (config, _) in BRIDGED.items():
    config.task_type, config.target_modules = "CAUSAL_LM", {"q_proj", "v_proj"}
    MADE[name] = config
BLOCKS = {
    **{
        name: {"method": name, "target_modules": QV, **SIZES.get(name, {}), **rest}
        for name, (_, rest) in BRIDGED.items()
    },
    "lora": LORA,
    "dora": {
        "method": "dora", "r": 4, "lora_alpha": 8, "use_rslora": True,
        "target_modules": ["q_proj", "down_proj"], "modules_to_save": ["lm_head"],
        "rank_pattern": {"*.1.mlp.down_proj": 2}, "alpha_pattern": {"*.1.mlp.down_proj": 16},
    },
    "prefix": {"method": "prefix", "num_virtual_tokens": 3},
    "prompt": {"method": "prompt", "num_virtual_tokens": 3},
}  # fmt: skip


@pytest.fixture(scope="module")
def made(model_folder, tmp_path_factory):
    """Folders that plain PEFT saved on the tiny model, made when first asked for."""
    place = tmp_path_factory.mktemp("peft")

    def folder(name: str) -> Path:
        if not (place / name).is_dir():
            torch.manual_seed(3)
            base = AutoModelForCausalLM.from_pretrained(model_folder)
            model = get_peft_model(base, MADE[name])
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.requires_grad:
                        parameter.add_(torch.randn_like(parameter), alpha=0.1)
            model.save_pretrained(place / name)
        return place / name

    return folder


@pytest.fixture
def job(recipe, tmp_path):
    """The job of a stage that goes on from a folder, with an adapter block."""

    def job(start: object, adapter: dict | None, **more: object):
        stage = recipe["stages"][0]
        stage |= {"start_from": str(start), "adapter": adapter, **more}
        stage["train"] |= {"max_steps": 2, "learning_rate": 1e-12, "logging_steps": 1}
        stage["evaluate"] = None
        path = tmp_path / "recipe.yaml"
        path.write_text(json.dumps(recipe))
        return load_recipe(path, Registry.discover(), [f"output_dir={tmp_path / 'runs'}"])

    return job


def faults(job) -> str:
    found = preflight(job, BaseModel(job.recipe.model))
    return "\n".join(f"{fault.code} {fault.what}; {fault.fix}" for fault in found)


@pytest.mark.parametrize("name", list(BLOCKS))
def test_a_stage_goes_on_with_the_logits_of_plain_peft(name, made, job, model_folder):
    summary = run_recipe(job(f"peft:{made(name)}", BLOCKS[name]))
    ids = torch.arange(3, 40)[None]
    base = AutoModelForCausalLM.from_pretrained(model_folder)
    with torch.no_grad():
        bare = base(input_ids=ids).logits
        plain = PeftModel.from_pretrained(base, made(name)).eval()
        want = plain(input_ids=ids).logits
        got = trained_stage(summary.folder).model()(input_ids=ids).logits
    assert not torch.allclose(bare, want[:, -len(ids[0]) :], atol=1e-2)
    torch.testing.assert_close(got, want[:, -len(ids[0]) :], atol=1e-5, rtol=1e-5)
    lock = fsio.read_json(summary.folder / "lock.json", "")
    assert lock["adapters"][str(made(name))]["adapter_model.safetensors"] == fsio.sha256(
        made(name) / "adapter_model.safetensors"
    )


@pytest.mark.parametrize("name", list(BRIDGED))
def test_a_bridged_method_says_what_of_a_folder_is_not_as_in_its_block(name, made, job):
    """Without what the block says beside its sizes, another adapter would be computed."""
    rest = BRIDGED[name][1]
    sizes = {"method": name, "target_modules": QV, **SIZES.get(name, {})}
    found = faults(job(f"peft:{made(name)}", sizes))
    assert "E034" in found
    for key, value in rest.items():
        assert key in found or "have another shape" in found, found
        wanted = f"[{', '.join(value)}]" if isinstance(value, list) else str(value).lower()
        assert f"{key}: {wanted}" in found, found
    assert "target_modules: [q_proj, v_proj]" in found or name == "ia3"


def test_a_bridged_method_takes_no_other_kind_and_no_regex(made, job, tmp_path):
    vera = {**BLOCKS["vera"]}
    assert 'type "IA3", and not VERA' in faults(job(f"peft:{made('ia3')}", vera))
    folder = tmp_path / "copy"
    shutil.copytree(made("ia3"), folder)
    edit(folder, feedforward_modules="(a+)+$")
    assert "regular expression" in faults(job(f"peft:{folder}", BLOCKS["ia3"]))
    more = {**BLOCKS["hra"], "target_modules": [*QV, "k_proj"]}
    assert "it has none for 2 that this block trains" in faults(job(f"peft:{made('hra')}", more))


def test_the_adapter_is_the_reference_of_preference_training(made, job, tmp_path):
    rows = tmp_path / "pairs.jsonl"
    pairs = [{"prompt": f"say {n}:", "chosen": f" {n}", "rejected": " no"} for n in range(8)]
    rows.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    summary = run_recipe(
        job(
            f"peft:{made('lora')}", LORA, alignment={"method": "dpo"},
            data={"method": "preference", "path": str(rows)},
        )
    )  # fmt: skip
    lines = (summary.folder / "stages/sft/metrics.jsonl").read_text().splitlines()
    first = next(entry for entry in map(json.loads, lines) if entry["phase"] == "train")
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize(
    ("folder", "change", "said"),
    [
        ("lora", {"lora_alpha": 16}, "scaled by 3 in the folder, and by 4 here"),
        ("lora", {"r": 8}, "have another shape"),
        ("lora", {"target_modules": ["q_proj"]}, "tensors that this block does not train"),
        ("lora", {"target_modules": [*QV, "k_proj"]}, "it has none for"),
        ("lora", {"method": "dora"}, "use_dora"),
        ("lora", {"init_lora_weights": "olora"}, "olora is how a new adapter starts"),
        ("rslora", {}, "scaled by 6 in the folder, and by 3 here"),
        ("pissa", {}, "path_initial_model_for_weight_conversion"),
        ("biased", {}, "lora_bias is true"),
        ("prefix", {}, 'PEFT\'s type "PREFIX_TUNING", and not LORA'),
    ],
)
def test_another_adapter_than_the_block_describes_is_refused(folder, change, said, made, job):
    found = faults(job(f"peft:{made(folder)}", {**LORA, **change}))
    assert "E034" in found
    assert said in found


def test_the_fix_is_the_block_that_describes_the_folder(made, job):
    found = faults(job(f"peft:{made('lora')}", {"method": "lora", "r": 2}))
    block = "adapter: {method: lora, r: 4, lora_alpha: 12, target_modules: [q_proj, v_proj]}"
    assert block in found
    assert not faults(job(f"peft:{made('lora')}", LORA))


@pytest.mark.parametrize(
    ("folder", "block", "said"),
    [
        ("prompt", {"method": "prompt", "num_virtual_tokens": 4}, "write num_virtual_tokens: 3"),
        ("lora", {"method": "prompt", "num_virtual_tokens": 4}, "type LORA, and 'prompt'"),
        ("ptuning", {"method": "ptuning", "num_virtual_tokens": 3}, "not the network"),
        ("lora", {"method": "full"}, "'full' cannot go on from an adapter"),
    ],
)
def test_other_methods_take_their_own_kind_only(folder, block, said, made, job):
    found = faults(job(f"peft:{made(folder)}", block))
    assert "E034" in found
    assert said in found


def _pickled(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def _linked(folder: Path) -> None:
    os.symlink("/etc/hostname", folder / "README.txt")


def _large(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(" " * 2**21 + "{}")


def _torn(folder: Path) -> None:
    data = (folder / "adapter_model.safetensors").read_bytes()
    (folder / "adapter_model.safetensors").write_bytes(data[:-9])


def _without(folder: Path) -> None:
    (folder / "adapter_config.json").unlink()


def _code(folder: Path) -> None:
    edit(folder, auto_map={"AutoModel": "evil.py"})


def _regex(folder: Path) -> None:
    edit(folder, alpha_pattern={"(a+)+$": 3})


def edit(folder: Path, **settings: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


@pytest.mark.parametrize(
    ("harm", "code", "said"),
    [
        (_pickled, "E602", "as a pickle only"),
        (_linked, "E605", "is a link"),
        (_large, "E201", "more than 1,048,576 bytes"),
        (_torn, "E201", "damaged"),
        (_without, "E201", "has no adapter_config.json"),
        (_code, "E601", "auto_map"),
        (_regex, "E034", "regular expression"),
    ],
)
def test_a_hostile_or_damaged_folder_is_refused(harm, code, said, made, job, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(made("lora"), folder)
    harm(folder)
    found = faults(job(f"peft:{folder}", LORA))
    assert code in found
    assert said in found


def test_the_base_is_checked(made, job, tmp_path, model_folder):
    folder = tmp_path / "copy"
    shutil.copytree(made("lora"), folder)
    other = tiny_model_folder(tmp_path / "other", seed=5)
    edit(folder, base_model_name_or_path=str(other))
    assert "E405" in faults(job(f"peft:{folder}", LORA))
    same = tmp_path / "same"
    shutil.copytree(model_folder, same)
    edit(folder, base_model_name_or_path=str(same))
    one = job(f"peft:{folder}", LORA)
    assert not faults(one)
    assert not start_remarks(one, BaseModel(one.recipe.model))
    edit(folder, base_model_name_or_path="org/name")
    one = job(f"peft:{folder}", LORA)
    assert not faults(one)
    (told,) = start_remarks(one, BaseModel(one.recipe.model))
    assert "names 'org/name' as its base" in told
    assert "cannot be known" in told


def test_a_start_that_cannot_be_is_refused_when_the_recipe_is_read(job, tmp_path):
    with pytest.raises(RecipeError, match="has no adapter block"):
        job("peft:here", None)
    with pytest.raises(RecipeError, match=r"E035.*no folder or hub id follows"):
        job("peft:", LORA)
    assert "no folder './nowhere'" in faults(job("peft:./nowhere", LORA))


def test_an_adapter_that_changed_since_is_refused_on_resume(made, job, recipe, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(made("lora"), folder)
    recipe["stages"].append({**recipe["stages"][0], "name": "two", "adapter": None})
    recipe["stages"][1] |= {"start_from": "sft"}
    one = job(f"peft:{folder}", LORA)
    run = run_recipe(one, Part(last="sft")).folder
    tensors = {n: t + 1 for n, t in load_file(folder / "adapter_model.safetensors").items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"E405.*is not the one that the run started with"):
        resume_recipe(one, run)
    shutil.copytree(made("lora"), folder, dirs_exist_ok=True)
    assert list(resume_recipe(one, run).stages) == ["sft", "two"]


def test_nothing_is_asked_of_the_hub_for_a_path(made, job, monkeypatch):
    from llmft.system import hub_client

    def asked() -> None:
        raise LlmftError("E201", "the hub was asked")

    monkeypatch.setattr(hub_client, "guard", asked)
    assert not faults(job(f"peft:{made('lora')}", LORA))
    assert "the hub was asked" in faults(job("peft:org/name", LORA))
