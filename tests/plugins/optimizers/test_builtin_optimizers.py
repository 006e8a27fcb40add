"""The builtin optimisers pass the public kit."""

from __future__ import annotations

from llmft_optimizers import of_torch
from llmft_optimizers.adafactor import Adafactor
from llmft_optimizers.of_bitsandbytes import (
    Adamw8bit,
    Lion8bit,
    Lion32bit,
    PagedAdamw8bit,
    PagedAdamw32bit,
    PagedLion8bit,
    PagedLion32bit,
)

from llmft.testing import OptimizerContract


class TestAdamwTorch(OptimizerContract):
    method_class = of_torch.AdamwTorch


class TestAdamwTorchFused(OptimizerContract):
    method_class = of_torch.AdamwTorchFused


class TestSgd(OptimizerContract):
    method_class = of_torch.Sgd
    configs = [{}, {"momentum": 0.9}]
    learning_rate = 3.0


class TestAdagrad(OptimizerContract):
    method_class = of_torch.Adagrad
    learning_rate = 0.1


class TestRmsprop(OptimizerContract):
    method_class = of_torch.Rmsprop


class TestMuon(OptimizerContract):
    method_class = of_torch.Muon
    configs = [{}, {"momentum": 0.5}]


class TestAdafactor(OptimizerContract):
    method_class = Adafactor


class TestAdamw8bit(OptimizerContract):
    method_class = Adamw8bit


class TestPagedAdamw8bit(OptimizerContract):
    method_class = PagedAdamw8bit


class TestPagedAdamw32bit(OptimizerContract):
    method_class = PagedAdamw32bit


class TestLion32bit(OptimizerContract):
    method_class = Lion32bit


class TestLion8bit(OptimizerContract):
    method_class = Lion8bit


class TestPagedLion32bit(OptimizerContract):
    method_class = PagedLion32bit


class TestPagedLion8bit(OptimizerContract):
    method_class = PagedLion8bit
