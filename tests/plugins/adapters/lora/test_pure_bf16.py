"""Training the adapter's own weights in bfloat16, against plain PEFT."""

from __future__ import annotations

import pytest
import torch
from llmft_adapters.dora import Dora
from llmft_adapters.lora import Lora
from peft import LoraConfig, get_peft_model

from llmft.modeling.tiny_models import tiny_llama

IDS = torch.tensor([[1, 5, 9, 2, 7, 3]])


def one_step(model):
    """Take a step of AdamW, and return the loss, the gradients and what is trained after it."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.0)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(input_ids=IDS, labels=IDS).loss
    loss.backward()
    optimizer.step()
    return float(loss.detach()), [p.grad for p in trained], [p.detach() for p in trained]


def test_a_step_is_that_of_peft_without_its_upcast_to_float32():
    # PEFT 0.19: get_peft_model(autocast_adapter_dtype=False) leaves A and B in the base's type.
    settings = {"r": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}
    torch.manual_seed(0)
    theirs = get_peft_model(
        tiny_llama().bfloat16(),
        LoraConfig(task_type="CAUSAL_LM", lora_alpha=16, **settings),
        autocast_adapter_dtype=False,
    )
    ours = Lora(Lora.Config(method="lora", pure_bf16=True, **settings)).attach(
        tiny_llama().bfloat16()
    )
    kept = {n: p for n, p in theirs.named_parameters() if p.requires_grad}
    for name, parameter in ours.named_parameters():
        if parameter.requires_grad:
            parameter.data.copy_(kept.pop(name))
    assert not kept
    loss, grads, after = one_step(ours)
    expected, their_grads, _ = one_step(theirs)
    assert loss == pytest.approx(expected, rel=1e-2)
    for mine, other in zip(grads, their_grads, strict=True):
        assert mine.dtype == other.dtype == torch.bfloat16
        assert float((mine - other).norm() / other.norm()) < 0.05
    assert {p.dtype for p in after} == {torch.bfloat16}


def test_doras_magnitudes_stay_float32():
    # TRL 1.16, SFTTrainer.__init__: all that is trained but lora_magnitude_vector.
    model = Dora(Dora.Config(method="dora", pure_bf16=True)).attach(tiny_llama())
    dtypes = {
        "magnitude" in name: parameter.dtype
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    assert dtypes == {True: torch.float32, False: torch.bfloat16}
