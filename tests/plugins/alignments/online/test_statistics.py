"""Moments and whitening against the standard library's."""

from __future__ import annotations

import statistics

import pytest
import torch
from llmft_alignments.online.statistics import moments, power_sums, whiten

NUMBERS = [0.5, -1.25, 3.0, 0.0, 2.5]


def test_moments_are_the_mean_and_the_sample_variance():
    mean, variance = moments(power_sums(torch.tensor(NUMBERS)))
    assert float(mean) == pytest.approx(statistics.fmean(NUMBERS))
    assert float(variance) == pytest.approx(statistics.variance(NUMBERS))


def test_parts_of_several_processes_add_up():
    parts = power_sums(torch.tensor(NUMBERS[:2])) + power_sums(torch.tensor(NUMBERS[2:]))
    assert torch.allclose(parts, power_sums(torch.tensor(NUMBERS)))


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whitened_numbers_have_variance_1(shift_mean):
    x = torch.tensor(NUMBERS)
    found = whiten(x, power_sums(x), shift_mean=shift_mean)
    assert found.dtype == x.dtype
    mean = 0.0 if shift_mean else statistics.fmean(NUMBERS)
    assert float(found.mean()) == pytest.approx(mean, abs=1e-6)
    assert float(found.var()) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("size", [1, 4])
def test_equal_numbers_are_whitened_to_none(size):
    x = torch.full((size,), 0.7)
    assert whiten(x, power_sums(x)).tolist() == [0.0] * size
    assert whiten(x, power_sums(x), shift_mean=False).tolist() == pytest.approx([0.7] * size)
