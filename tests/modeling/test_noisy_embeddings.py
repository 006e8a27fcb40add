"""NEFTune's noise: as transformers adds it, to each row by its own length, in training alone."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from llmft_adapters.lora import Lora
from llmft_adapters.prefix import Prefix
from llmft_adapters.prompt import PromptTuning
from llmft_alignments.sft import CompletionLoss

from llmft.api import Encoded
from llmft.api.train_settings import TrainSettings
from llmft.modeling import attention
from llmft.modeling.forward import label_nll
from llmft.modeling.noisy_embeddings import noisy_embeddings
from llmft.modeling.tiny_models import tiny_gpt2, tiny_llama
from llmft.training import loop

SHORT, LONG = (Encoded(tuple(range(1, n)), tuple(range(1, n)), f"{n}") for n in (5, 17))


def embedded(model, rows, shared=None, *, alpha=3.0):
    """Return what the embedding gives with noise, less what it gives without."""
    seen = []
    table = model.get_input_embeddings()
    with noisy_embeddings(model, alpha):
        hook = table.register_forward_hook(lambda _, ids, out: seen.append((ids[0], out)))
        label_nll(model, rows, shared)
        hook.remove()
    ((ids, out),) = seen
    return (out - torch.nn.functional.embedding(ids, table.weight)).detach()


def test_one_row_gets_the_noise_of_transformers():
    from transformers.integrations.neftune import neftune_post_forward_hook

    out = torch.zeros(1, 16, 32)
    torch.manual_seed(3)
    theirs = neftune_post_forward_hook(
        SimpleNamespace(training=True, neftune_noise_alpha=3.0), None, out
    )
    torch.manual_seed(3)
    ours = embedded(tiny_llama().train(), [LONG])
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("packed", [False, True])
def test_each_row_is_moved_by_its_own_length(packed):
    model = tiny_llama().train()
    if packed:
        attention.register()
        model.set_attn_implementation(attention.NAME)
    moved = embedded(model, [SHORT, LONG]).abs()
    parts = (moved[0, :4], moved[0, 4:]) if packed else (moved[0, :4], moved[1])
    for part, length in zip(parts, (4, 16), strict=True):
        bound = 3.0 / math.sqrt(length * 32)
        assert 0.9 * bound < float(part.max()) <= bound


def test_a_shared_start_belongs_to_both_rows():
    model = tiny_llama().train()
    attention.register()
    model.set_attn_implementation(attention.NAME)
    other = Encoded((*LONG.input_ids[:-1], 99), (-100,) * 15 + (99,))
    moved = embedded(model, [LONG, other], [(0, 0), (0, 15)]).abs()
    bound = 3.0 / math.sqrt(16 * 32)
    assert moved.shape[1] == 17
    assert 0.5 * bound < float(moved[0, 16].max()) <= bound


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("adapter", [
    Lora(Lora.Config(method="lora", r=2)),
    Prefix(Prefix.Config(method="prefix", num_virtual_tokens=3)),
    PromptTuning(PromptTuning.Config(method="prompt", num_virtual_tokens=3)),
], ids=lambda adapter: adapter.method)  # fmt: skip
def test_it_is_there_in_training_alone_with_any_adapter(make, adapter):
    model = adapter.attach(make())
    rows, modes = [SHORT, LONG], (False, True)
    clean = [label_nll(model.train(mode), rows).nll_N.sum().item() for mode in modes]
    found = []
    for mode in modes:
        with noisy_embeddings(model.train(mode), 50.0):
            found.append(label_nll(model, rows).nll_N.sum().item())
    after = label_nll(model.train(), rows).nll_N.sum().item()
    assert found[0] == clean[0]
    assert found[1] != pytest.approx(clean[1], rel=1e-3)
    assert after == clean[1]


def test_a_training_with_noise_goes_on_to_the_bit(tmp_path):
    """Its random numbers are the checkpoint's: two trainings of one seed are the same."""
    losses = []
    for alpha in (None, 5.0, 5.0):
        train = TrainSettings(neftune_noise_alpha=alpha, max_steps=3, learning_rate=1e-2)
        torch.manual_seed(1)
        report = loop.train(tiny_llama(), [SHORT, LONG] * 8, CompletionLoss(), train, seed=0)
        losses.append(report.losses)
    assert losses[1] == losses[2] != losses[0]
