"""Packing: bins hold whole rows, and the loss of a bin is the loss of its rows."""

from __future__ import annotations

import random

import pytest
import torch
from llmft_alignments.sft import CompletionLoss

from llmft.api import Encoded
from llmft.data.packing import PackedObjective, pack
from llmft.modeling import attention
from llmft.modeling.tiny_models import tiny_llama


def rows(lengths):
    return [Encoded((n % 256,) * n, (-100,) + (n % 256,) * (n - 1), f"row {n}") for n in lengths]


@pytest.mark.parametrize("seed", range(5))
def test_every_row_stands_whole_in_one_bin_and_few_bins_are_used(seed):
    draw = random.Random(seed)
    given = rows([draw.randint(2, 64) for _ in range(200)])
    bins = pack(given, 64)
    assert sorted(row.origin for bin in bins for row in bin) == sorted(row.origin for row in given)
    assert all(sum(len(row.input_ids) for row in bin) <= 64 for bin in bins)
    tokens = sum(len(row.input_ids) for row in given)
    assert len(bins) <= 1.1 * tokens / 64 + 1


def test_a_bins_loss_is_that_of_its_rows():
    attention.register()
    model = tiny_llama()
    model.set_attn_implementation(attention.NAME)
    given = rows([5, 9, 3, 30])
    alone = CompletionLoss()
    packed = PackedObjective(alone)
    bins = pack(given, 32)
    assert len(bins) == 2
    assert packed.weight(bins) == alone.weight(given)
    found, expected = packed.loss(model, bins)[0], alone.loss(model, given)[0]
    torch.testing.assert_close(found, expected)
