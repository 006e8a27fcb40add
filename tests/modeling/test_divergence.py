"""The divergence of two models: TRL's own function on plain transformers' logits is the referee."""

from __future__ import annotations

import pytest
import torch

from llmft.api import Encoded
from llmft.modeling import attention, divergence
from llmft.modeling.tiny_models import tiny_llama
from tests.extended import extended

ROWS = [((5, 6, 7, 8, 9), 3), ((10, 11, 12), 1), ((20, 21, 22, 23, 24, 25, 26), 2)]
"""Token ids, and how many of them are the prompt."""


def encoded() -> list[Encoded]:
    return [Encoded(ids, (-100,) * n + ids[n:], f"row {n}") for ids, n in ROWS]


def sharp(seed: int, packed: bool = False):
    """Return a model that finds some tokens much likelier than others."""
    model = tiny_llama(seed)
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
    if packed:
        attention.register()
        model.set_attn_implementation(attention.NAME)
    return model


def of_trl(model, other, beta, temperature, words=None):
    """Return TRL's sum over all labels, each row alone in a plain forward pass."""
    from trl.experimental.gkd import GKDTrainer

    whole = 0.0
    for ids, n in ROWS:
        batch = torch.tensor([ids])
        logits = [m(batch).logits[:, n - 1 : -1, :words] for m in (model, other)]
        whole = whole + GKDTrainer.generalized_jsd_loss(
            *logits, beta=beta, temperature=temperature, reduction="sum"
        )
    return whole


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("beta", "temperature"),
    extended(
        [(0.0, 0.7), (0.3, 0.7), (0.5, 2.0), (1.0, 0.9)], plain=[(0.0, 0.7), (0.3, 0.7), (1.0, 0.9)]
    ),
)
def test_it_is_trls_and_so_is_its_gradient(beta, temperature, packed, monkeypatch):
    monkeypatch.setattr(divergence, "LOGITS_AT_ONCE", 600)
    monkeypatch.setattr(divergence, "LEAST_ROWS", 2)  # pieces of two labels
    ours, theirs = sharp(0, packed), sharp(0)
    teacher = sharp(1)
    found = divergence.divergence(ours, sharp(1, packed), encoded(), beta, temperature)
    assert found.row_N.tolist() == [0, 0, 1, 1, 2, 2, 2, 2, 2]  # 9 labels
    wanted = of_trl(theirs, teacher, beta, temperature)
    assert float(found.nats_N.sum()) == pytest.approx(float(wanted), rel=1e-5)
    found.nats_N.sum().backward()
    wanted.backward()
    for own, plain in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(own.grad, plain.grad, rtol=2e-4, atol=1e-5)


def test_the_teacher_gets_no_gradient_and_a_frozen_head_none():
    model, teacher = sharp(0), sharp(1)
    model.lm_head.weight.requires_grad_(False)
    divergence.divergence(model, teacher, encoded()).nats_N.sum().backward()
    assert model.lm_head.weight.grad is None
    assert model.model.layers[0].mlp.up_proj.weight.grad is not None
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_logits_that_only_one_of_them_has_are_left_out():
    model, teacher = sharp(0), sharp(1)
    wider = torch.nn.Linear(32, 310, bias=False)
    with torch.no_grad():
        wider.weight[:300] = teacher.lm_head.weight
        wider.weight[300:] = 5.0
    wanted = of_trl(model, teacher, 0.5, 1.0)
    teacher.lm_head, teacher.config.vocab_size = wider, 310
    found = divergence.divergence(model, teacher, encoded())
    assert float(found.nats_N.sum()) == pytest.approx(float(wanted), rel=1e-5)


def test_a_model_is_at_no_distance_from_itself():
    found = divergence.divergence(sharp(0), sharp(0, packed=True), encoded())
    assert found.nats_N.abs().max() < 1e-5


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("ours", [True, False])
def test_a_token_that_the_other_model_masks_adds_what_one_of_no_probability_does(beta, ours):
    def with_last(lowest):
        """Return the divergence and its gradient where the last two logits are so low."""
        draw = torch.Generator().manual_seed(0)
        own, other = torch.randn(2, 3, 6, generator=draw).unbind()
        other[:, -2:] = lowest
        if ours:
            own[:, -2:] = lowest
        own.requires_grad_()
        nats = divergence._of_states(own, other, None, None, 6, beta, temperature=0.5)
        nats.sum().backward()
        return nats.detach(), own.grad

    found, gradient = with_last(torch.finfo(torch.float32).min)  # which halves of are infinite
    if beta == 1 and not ours:  # what the other model never gives is likely
        assert found.isinf().all()
        return
    wanted, gradient_wanted = with_last(-1e3)
    assert torch.allclose(found, wanted, rtol=1e-5)
    assert torch.allclose(gradient, gradient_wanted, rtol=1e-5, atol=1e-7)
    assert gradient[:, :-2].abs().min() > 1e-4
