"""The optimisers of torch, each made as transformers' Trainer makes it, from the same settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmft.api import (
    Field,
    Optimizer,
    OptimizerConfig,
    StageError,
    TrainSettings,
    hookimpl,
)
from llmft_optimizers.making import Groups, copied, of_adam, usual

if TYPE_CHECKING:
    import torch


class AdamwTorch(Optimizer[OptimizerConfig]):
    """AdamW (Loshchilov and Hutter 2019), as torch has it; on a GPU in its fused kernel."""

    method = "adamw_torch"
    Config = OptimizerConfig
    fused = False

    def make(self, groups: Groups, train: TrainSettings) -> torch.optim.Optimizer:
        import torch

        # Elsewhere a step is some kernels for each tensor, and a GPU waits for the host.
        on_a_gpu = all(one.is_cuda for group in groups for one in group["params"])
        fused = self.fused or on_a_gpu
        return torch.optim.AdamW(copied(groups), fused=fused, **of_adam(train), **usual(train))


class AdamwTorchFused(AdamwTorch):
    """AdamW in torch's fused kernel: the same, in fewer passes over the memory."""

    method = "adamw_torch_fused"
    fused = True

    def planned(self) -> Optimizer[Any]:
        return AdamwTorch(OptimizerConfig(method="adamw_torch"))


class Sgd(Optimizer["Sgd.Config"]):
    """Stochastic gradient descent, without momentum where none is set."""

    method = "sgd"

    class Config(OptimizerConfig):
        """The momentum."""

        momentum: float = Field(0.0, ge=0, lt=1, description="decay of the momentum; 0: none")

    def make(self, groups: Groups, train: TrainSettings) -> torch.optim.Optimizer:
        import torch

        return torch.optim.SGD(copied(groups), momentum=self.config.momentum, **usual(train))


class Adagrad(Optimizer[OptimizerConfig]):
    """Adagrad (Duchi et al. 2011), as torch has it."""

    method = "adagrad"
    Config = OptimizerConfig

    def make(self, groups: Groups, train: TrainSettings) -> torch.optim.Optimizer:
        import torch

        return torch.optim.Adagrad(copied(groups), **usual(train))


class Rmsprop(Optimizer[OptimizerConfig]):
    """RMSprop, as torch has it."""

    method = "rmsprop"
    Config = OptimizerConfig

    def make(self, groups: Groups, train: TrainSettings) -> torch.optim.Optimizer:
        import torch

        return torch.optim.RMSprop(copied(groups), **usual(train))


class Muon(Optimizer["Muon.Config"]):
    """Muon, as torch has it: momentum made orthogonal; it trains matrices only.

    With the learning rate of an AdamW of the same update size (Liu et al. 2025, arXiv:2502.16982).
    """

    method = "muon"

    class Config(OptimizerConfig):
        """The momentum."""

        momentum: float = Field(0.95, ge=0, lt=1, description="decay of the momentum")

    def make(self, groups: Groups, train: TrainSettings) -> torch.optim.Optimizer:
        import torch

        for parameter in (p for group in groups for p in group["params"]):
            if parameter.dim() != 2:
                raise StageError(
                    "E300",
                    f"optim 'muon' trains matrices, and this stage trains a tensor of the shape"
                    f" {list(parameter.shape)} too",
                    fix="choose another train.optim, or an adapter that trains matrices only",
                )
        return torch.optim.Muon(
            copied(groups),
            adjust_lr_fn="match_rms_adamw",
            momentum=self.config.momentum,
            **usual(train),
        )


@hookimpl
def llmft_optimizers() -> list[type[Optimizer[Any]]]:
    return [AdamwTorch, AdamwTorchFused, Sgd, Adagrad, Rmsprop, Muon]
