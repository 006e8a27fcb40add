"""FourierFT: an update whose spectrum has few trained coefficients (Gao et al. 2024)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from llmft.api import Field, Refusal, hookimpl
from llmft_adapters.layer_choice import LayerChoice
from llmft_adapters.peft_methods import PeftMethod


class FourierFT(PeftMethod["FourierFT.Config"]):
    """W x becomes W x + scaling * ifft2(F) x, with n_frequency coefficients of F trained."""

    method = "fourierft"
    config_class = "FourierFTConfig"
    takes_conv1d = True
    small = {"n_frequency": 4}

    class Config(LayerChoice):
        """PEFT's FourierFTConfig, by its own names."""

        n_frequency: int = Field(
            1000, ge=1, le=100_000_000, description="the trained coefficients of each layer"
        )
        scaling: float = Field(150.0, gt=0, le=1e9, description="the scale of the update")
        random_loc_seed: int = Field(
            777, ge=0, lt=2**63, description="the seed of the places that the coefficients have"
        )
        init_weights: bool = Field(
            False, description="start with coefficients of 0; false: random ones, as the paper has"
        )

    def starts_as_base(self) -> bool:
        return self.config.init_weights

    def layer_misfits(self, sizes: Mapping[str, tuple[int, int]]) -> Iterable[Refusal]:
        for name, (inputs, outputs) in sizes.items():
            if self.config.n_frequency > inputs * outputs:
                what = f"'{name}' has {inputs * outputs} coefficients"
                yield ("n_frequency",), what, "write no more than that"
                return


@hookimpl
def llmft_adapters() -> list[type[FourierFT]]:
    return [FourierFT]
