"""Log-likelihoods, entropies and states at generated tokens: right, and the same by every path."""

from __future__ import annotations

import pytest
import torch

from llmft.api import Encoded
from llmft.modeling import attention, forward
from llmft.modeling import token_stats as module
from llmft.modeling.tiny_models import tiny_llama
from llmft.modeling.token_stats import token_stats
from llmft.testing import measures
from llmft.testing.tiny_architectures import ARCHITECTURES, tiny

ROWS = [
    Encoded((5, 6, 7, 8, 9), (-100, -100, 7, 8, 9)),
    Encoded((11, 12, 13), (-100, 12, 13)),
    Encoded((21, 22, 23, 24), (-100, -100, -100, 24)),
]


@pytest.fixture(autouse=True)
def _one_thread():
    with measures.one_thread():
        yield


def plain(model, temperature, nuclei=None):
    """Each row alone, all logits at once; a nucleus' distribution from its own logits only."""
    logps, entropy, hidden = [], [], []
    for row in ROWS:
        ids = torch.tensor([row.input_ids])
        out = model(input_ids=ids, output_hidden_states=True)
        logits = out.logits[0].float() / temperature
        for t, label in enumerate(row.labels):
            if label != -100:
                ids = nuclei[len(logps)].long() if nuclei else torch.arange(logits.shape[1])
                distribution = torch.log_softmax(logits[t - 1, ids], -1)
                logps.append(distribution[ids == label].squeeze())
                entropy.append(-(distribution.exp() * distribution).sum())
                hidden.append(out.hidden_states[-1][0, t - 1])
    return torch.stack(logps), torch.stack(entropy), torch.stack(hidden)


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
@pytest.mark.parametrize("split", [False, True])
def test_every_architecture_gives_what_rows_alone_give(architecture, split, monkeypatch):
    model = tiny(architecture)
    if split:
        monkeypatch.setattr(module, "LOGITS_AT_ONCE", 2 * 300)
        monkeypatch.setattr(module, "LEAST_ROWS", 2)
        monkeypatch.setattr(forward, "LOGITS_AT_ONCE", 2 * 300)
    with torch.no_grad():
        wanted = plain(model, 0.7)
        found = token_stats(model, ROWS, 0.7)
    torch.testing.assert_close(found.logps_N, wanted[0], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(found.entropy_N, wanted[1], atol=2e-5, rtol=1e-4)
    assert found.row_N.tolist() == [0, 0, 0, 1, 1, 2]
    if architecture not in ("bert",):  # its output layer reads a transform of the last state
        torch.testing.assert_close(found.hidden_ND, wanted[2], atol=2e-5, rtol=1e-4)


WEIGHTS_N = torch.arange(1.0, 7.0)
LABELS = [7, 8, 9, 12, 13, 24]
NUCLEI = [torch.tensor([label, *range(100, 100 + others)], dtype=torch.int32)
          for others, label in enumerate(LABELS)]  # fmt: skip


def gradient_of(stats, trained, with_entropy):
    logps, entropy, hidden = stats
    loss = (logps * WEIGHTS_N).sum() + 0.01 * (hidden**2).sum()
    if with_entropy:
        loss = loss + 0.3 * (entropy * WEIGHTS_N).sum()
    return torch.autograd.grad(loss, trained)[0]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("with_entropy", [False, True])
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("nuclei", [None, NUCLEI], ids=["all", "nuclei"])
def test_no_path_changes_a_gradient(packed, frozen, with_entropy, split, nuclei, monkeypatch):
    """Against whole logits, row by row; the output layer is frozen, as under an adapter, or not."""
    if split:
        monkeypatch.setattr(module, "LOGITS_AT_ONCE", 2 * 300)
        monkeypatch.setattr(module, "LEAST_ROWS", 2)
        monkeypatch.setattr(forward, "LOGITS_AT_ONCE", 2 * 300)
    model = tiny_llama().requires_grad_(False)
    trained = model.model.layers[0].mlp.up_proj.weight.requires_grad_(True)
    model.lm_head.weight.requires_grad_(not frozen)
    right = plain(model, 0.7, nuclei)
    wanted = gradient_of(right, trained, with_entropy)
    if packed:
        attention.register()
        model.set_attn_implementation(attention.NAME)
    found = token_stats(model, ROWS, 0.7, entropy_gradient=with_entropy, nuclei=nuclei)
    assert found.entropy_N.requires_grad is with_entropy
    stats = (found.logps_N, found.entropy_N, found.hidden_ND)
    torch.testing.assert_close(stats, right, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(
        gradient_of(stats, trained, with_entropy), wanted, atol=1e-5, rtol=1e-4
    )


def test_rows_without_a_label_are_refused():
    with pytest.raises(ValueError, match="no row"):
        token_stats(tiny_llama(), [Encoded((1, 2), (-100, -100))])


@pytest.mark.parametrize("frozen", [True, False])
def test_the_models_own_logits_are_made_only_where_its_head_is_trained(frozen, monkeypatch):
    """Under an adapter all logits at once, with their gradient, would be most of the memory."""
    made = []
    plain = forward.logits_at
    monkeypatch.setattr(forward, "logits_at", lambda *a: made.append(plain(*a)) or made[-1])
    model = tiny_llama().requires_grad_(False)
    model.lm_head.requires_grad_(not frozen)
    token_stats(model, ROWS)
    (out,) = made
    assert out.shape[-1] == (model.config.hidden_size if frozen else model.config.vocab_size)


def test_the_entropy_is_float32_s_under_autocast():
    model = tiny_llama()
    model.lm_head.weight.requires_grad_(False)
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
    rows = [Encoded(tuple(range(5, 60)), (-100,) * 5 + tuple(range(10, 60)), "row")]
    with torch.autocast("cpu", torch.bfloat16):
        found = token_stats(model, rows)
        logits_NV = model(torch.tensor([list(rows[0].input_ids)])).logits[0, 4:-1]
    logps_NV = torch.log_softmax(logits_NV.double(), 1)
    wanted_N = -(logps_NV.exp() * logps_NV).sum(1)
    assert found.entropy_N.dtype == torch.float32
    assert torch.allclose(found.entropy_N.double(), wanted_N, atol=1e-5)
