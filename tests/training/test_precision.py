"""Trained copies of base weights are float32, move, and are saved in the base's type."""

from __future__ import annotations

import json

import pytest
import torch
from llmft_adapters.lora import Lora
from llmft_adapters.lora.config import LoraConfig
from safetensors.torch import load_file, save_file

from llmft.api.errors import LlmftError
from llmft.modeling.precision import as_stored, train_in_float32
from llmft.modeling.tiny_models import tiny_gpt2, tiny_llama, tiny_model_folder


def attached(model, **settings):
    settings = {"method": "lora", "r": 2, **settings}
    return Lora(LoraConfig(**settings)).attach(model.requires_grad_(False))


WHOLE = {"target_modules": ["q_proj"], "modules_to_save": ["norm", "lm_head", "embed_tokens"]}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("make", "settings"),
    [(tiny_llama, WHOLE), (tiny_gpt2, {"bias": "all"}), (tiny_gpt2, {"bias": "lora_only"})],
)
def test_all_that_is_trained_is_float32_and_answers_stay(make, settings, dtype):
    model = attached(make().to(dtype), **settings)
    ids = torch.tensor([[5, 9, 4, 7, 3]])
    before = model(input_ids=ids).logits
    train_in_float32(model)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert all(p.dtype == torch.float32 for p in trained.values())
    after = model(input_ids=ids).logits
    assert after.dtype == before.dtype
    assert torch.equal(after, before)
    after.float().square().mean().backward()
    moved = [n for n, p in trained.items() if p.grad is not None and p.grad.abs().sum() > 0]
    assert any("lora" not in name for name in moved)
    with as_stored(model):
        names = [n for n, p in model.named_parameters() if p.requires_grad and p.dtype == dtype]
    assert names
    assert not any("lora" in name for name in names)
    assert all(p.dtype == torch.float32 for p in trained.values())


def test_a_step_smaller_than_bfloat16_s_distance_adds_up():
    model = attached(tiny_llama().to(torch.bfloat16), **WHOLE)
    train_in_float32(model)
    norm = next(
        p for n, p in model.named_parameters() if n.endswith("norm.modules_to_save.default.weight")
    )
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4)
    ids, start = torch.tensor([[5, 9, 4, 7, 3]]), norm.detach().clone()
    for _ in range(30):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert float((norm - start).abs().mean().detach()) > 3e-3
    with as_stored(model):
        assert norm.dtype == torch.bfloat16
        assert float((norm.float() != start).float().mean()) > 0.2


@pytest.mark.parametrize("extra", [{}, {"gradient_checkpointing": True}])
def test_a_run_saves_the_base_s_type_and_goes_on_from_it(run, rows_stage, model_folder, extra):
    lora = {"method": "lora", "r": 2, **WHOLE}
    stages = [rows_stage("one", adapter=lora), rows_stage("two", start_from="one")]
    for stage in stages:
        stage["train"] |= {"learning_rate": 2e-3, **extra}
    summary = run(*stages, model={"path": str(model_folder), "dtype": "bfloat16"})
    saved = [
        load_file(summary.folder / "stages" / name / "adapter" / "adapter_model.safetensors")
        for name in ("one", "two")
    ]
    key = next(k for k in saved[0] if k.endswith("model.norm.weight"))
    assert saved[0][key].dtype == torch.bfloat16
    assert not torch.equal(saved[0][key], saved[1][key])
    one, two = summary.stages["one"], summary.stages["two"]
    assert one.after["loss"] == pytest.approx(two.before["loss"], abs=1e-6)


@pytest.fixture
def rows_stage(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"say {n}:", "completion": f" {n % 7}"} for n in range(16)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def stage(name, **extra):
        return {
            "name": name,
            "alignment": {"method": "sft"},
            "data": {"method": "jsonl", "path": str(path)},
            "train": {"max_steps": 6, "per_device_train_batch_size": 4},
            "evaluate": {"metrics": ["loss"], "holdout": 0.25},
            **extra,
        }

    return stage


@pytest.mark.parametrize("number", ["nan", "inf"])
def test_a_base_that_is_not_finite_is_named(run, rows_stage, tmp_path, number):
    folder = tiny_model_folder(tmp_path / "bad")
    file = folder / "model.safetensors"
    state = load_file(file)
    state["model.layers.1.mlp.up_proj.weight"][3, 4] = float(number)
    save_file(state, file, metadata={"format": "pt"})
    said = r"E207.*not finite: 'model.layers.1.mlp.up_proj.weight'"
    with pytest.raises(LlmftError, match=said):
        run(rows_stage("s", adapter={"method": "lora"}), model={"path": str(folder)})
