"""Which parameters learn at which rate."""

from __future__ import annotations

import torch

from llmft.training.optimizer import joined_groups

A, B, HEAD = (torch.nn.Parameter(torch.zeros(n)) for n in (1, 2, 3))


def sizes(groups):
    return [([p.numel() for p in group["params"]], group.get("lr")) for group in groups]


def test_what_asks_for_nothing_is_one_group():
    assert sizes(joined_groups([A, B, HEAD], None, ())) == [([1, 2, 3], None)]


def test_a_group_beside_the_adapter_takes_its_parameters_out_of_the_adapters_groups():
    head = [{"params": [HEAD], "lr": 0.5}]
    assert sizes(joined_groups([A, B, HEAD], None, head)) == [([1, 2], None), ([3], 0.5)]
    own = [{"params": [A, HEAD]}, {"params": [B], "lr": 0.1}]
    expected = [([1], None), ([2], 0.1), ([3], 0.5)]
    assert sizes(joined_groups([A, B, HEAD], own, head)) == expected


def test_a_group_that_is_left_empty_is_none():
    head = [{"params": [HEAD], "lr": 0.5}]
    own = [{"params": [HEAD]}, {"params": [A, B], "lr": 0.1}]
    assert sizes(joined_groups([A, B, HEAD], own, head)) == [([1, 2], 0.1), ([3], 0.5)]
