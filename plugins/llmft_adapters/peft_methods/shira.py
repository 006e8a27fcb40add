"""SHiRA: a few entries of a weight, chosen at random and trained (Bhardwaj et al. 2024)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from llmft.api import Field, Refusal, hookimpl
from llmft_adapters.layer_choice import LayerChoice
from llmft_adapters.peft_methods import PeftMethod


class Shira(PeftMethod["Shira.Config"]):
    """As many entries of each weight get an update as LoRA of rank r would have parameters."""

    method = "shira"
    config_class = "ShiraConfig"
    small = {"r": 1}
    not_in_the_result = ("random_seed",)

    class Config(LayerChoice):
        """PEFT's ShiraConfig, by its own names."""

        r: int = Field(
            32, ge=1, le=65_536, description="r * (inputs + outputs) entries are trained"
        )
        random_seed: int | None = Field(
            None, ge=0, lt=2**63, description="the seed of the choice; default: the recipe's"
        )

    def for_shapes(self, config: Any) -> Any:
        config.mask_fn = _first_entries  # PEFT counts the entries that it has drawn
        return config

    def layer_misfits(self, sizes: Mapping[str, tuple[int, int]]) -> Iterable[Refusal]:
        for name, (inputs, outputs) in sizes.items():
            if self.config.r * (inputs + outputs) > inputs * outputs:
                what = f"'{name}' has {inputs * outputs} entries, fewer than r means"
                most = inputs * outputs // (inputs + outputs)
                yield ("r",), what, f"write a rank of at most {most}"
                return


def _first_entries(layer: Any, r: int, **settings: Any) -> Any:
    import torch

    mask = torch.zeros(layer.weight.shape, dtype=torch.bool, device="cpu")
    mask.view(-1)[: r * sum(mask.shape)] = True
    return mask


@hookimpl
def llmft_adapters() -> list[type[Shira]]:
    return [Shira]
