"""Norms and rotations as one step are what transformers' own are, and only where they are."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers.models.llama import modeling_llama as llama

from llmft.modeling import one_step
from tests.modeling.test_forward import tiny


def changed(model) -> list[str]:
    return [type(m).__name__ for m in model.modules() if "forward" in vars(m)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("near", [2**16, 96])
@pytest.mark.parametrize(
    ("architecture", "norms", "attentions"),
    [("llama", 5, 2), ("qwen3", 9, 2), ("mistral", 5, 2), ("gemma", 0, 2), ("gpt_neox", 0, 0)],
)
def test_a_model_gives_the_same_bits_and_the_same_gradients(
    architecture, norms, attentions, near, dtype, monkeypatch
):
    monkeypatch.setattr(one_step, "_NEAR", near)
    plain = tiny(architecture).to(dtype)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            if "norm" in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    own = copy.deepcopy(plain)
    one_step.take_over(own)
    names = changed(own)
    assert sum("Norm" in name for name in names) == norms
    assert sum("Attention" in name for name in names) == attentions
    ids = torch.randint(0, 256, (2, 13), generator=torch.Generator().manual_seed(0))
    found = []
    for model in (plain, own, copy.deepcopy(own), copy.deepcopy(plain).double()):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("norm" not in name)
        logits = model(input_ids=ids).logits
        (logits * torch.linspace(-1, 1, logits.numel()).view(logits.shape)).sum().backward()
        found.append([logits.detach(), *(p.grad for p in model.parameters() if p.requires_grad)])
    assert torch.equal(found[0][0], found[1][0])
    for plain_one, own_one, of_copy, exact in zip(*found, strict=True):
        off = [float((some - exact).norm()) for some in (plain_one, own_one)]
        assert off[1] <= 1.3 * off[0] + 1e-6 * float(exact.norm())
        torch.testing.assert_close(of_copy, own_one, atol=0, rtol=0)


def test_a_norm_is_as_near_to_float64_as_transformers_own():
    torch.manual_seed(0)
    norm = llama.LlamaRMSNorm(40).requires_grad_(False)
    norm.weight.normal_()
    x, weights = torch.randn(2, 3, 9, 40)
    exact = x.double().requires_grad_()
    scaled = exact / (exact.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()
    (want,) = torch.autograd.grad((scaled * norm.weight.double() * weights).sum(), exact)
    off = []
    for forward in (norm.forward, lambda given: one_step._norm(norm, given)):
        given = x.clone().requires_grad_()
        (got,) = torch.autograd.grad((forward(given) * weights).sum(), given)
        off.append(float((got - want).norm() / want.norm()))
    assert off[1] < max(2 * off[0], 1e-6)


def test_a_rotation_s_gradient_is_right_where_halves_turn_differently():
    torch.manual_seed(0)
    given = [torch.randn(1, 3, 5, 8).requires_grad_(), torch.randn(1, 1, 5, 8).requires_grad_()]
    cos, sin = torch.randn(2, 1, 5, 8)
    own = one_step._rotated_by(lambda *_: None)
    found = []
    for rotation in (llama.apply_rotary_pos_emb, own):
        out = rotation(*given, cos, sin)
        total = sum((o * torch.arange(float(o.numel())).view(o.shape)).sum() for o in out)
        found.append([*out, *torch.autograd.grad(total, given)])
    for theirs, mine in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_what_is_trained_or_of_another_type_is_left_to_transformers(monkeypatch):
    monkeypatch.setattr(one_step, "_RmsNorm", None)
    monkeypatch.setattr(one_step, "_Rotation", None)
    model = tiny("llama")
    one_step.take_over(model)
    ids = torch.arange(9)[None]
    model.to(torch.float16)(input_ids=ids)
    norm = model.float().model.norm
    norm(torch.randn(2, 32)).sum().backward()
    assert norm.weight.grad is not None


def test_code_that_differs_in_a_number_is_not_taken_over():
    class OtherNorm(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(4))
            self.variance_epsilon = 1e-6

        def forward(self, hidden_states):
            input_dtype = hidden_states.dtype
            hidden_states = hidden_states.to(torch.float32)
            variance = hidden_states.pow(3).mean(-1, keepdim=True)
            hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)
            return self.weight * hidden_states.to(input_dtype)

    model = torch.nn.Sequential(OtherNorm(), llama.LlamaRMSNorm(4))
    one_step.take_over(model)
    assert changed(model) == ["LlamaRMSNorm"]
