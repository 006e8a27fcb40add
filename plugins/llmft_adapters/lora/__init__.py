"""LoRA: low-rank updates beside frozen weights (Hu et al. 2021)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmft.api import Refusal, TrainSettings, hookimpl
from llmft_adapters.lora import ends, token_rows
from llmft_adapters.lora.biases import own_biases, put_back
from llmft_adapters.lora.config import LoraConfig
from llmft_adapters.lora.targets import (
    adapted_experts,
    adapted_layers,
    endless,
    misfits,
    targets_for_peft,
    values_for_peft,
    whole_layers_for_peft,
)
from llmft_adapters.peft_adapter import PeftAdapter


class Lora(PeftAdapter[LoraConfig]):
    """Low-rank adaptation: W x becomes W x + (alpha / r) B A x, with A and B trained."""

    method = "lora"
    Config = LoraConfig

    def check(self, model: Any) -> Iterable[Refusal]:
        if slow := list(endless(model, self.config)):
            yield from slow
            return
        yield from misfits(model, self.config)
        yield from ends.misfits(model, self.config)
        yield from token_rows.misfits(model, self.config)

    def on_small_copy(self) -> Lora:
        plain: dict[str, Any] = {
            "r": min(self.config.r, 4), "rank_pattern": {}, "alpha_pattern": {},
            "layers_to_transform": None,
            "trainable_token_indices": [1, 2] if self.config.trainable_token_indices else None,
        }  # fmt: skip
        return type(self)(self.config.model_copy(update=plain))

    def trains_new_tokens(self, model: Any) -> bool:
        return True

    def starts_as_base(self) -> bool:
        return self.config.init_lora_weights is not False  # else B is random too

    def trains_in_float32(self) -> bool:
        return not self.config.pure_bf16

    def check_peft(
        self, model: Any, settings: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]]
    ) -> Iterable[Refusal]:
        from llmft_adapters.lora import from_peft

        yield from from_peft.misfits(self, model, settings, tensors)

    def attach(self, model: Any) -> Any:
        kept = self._own_biases(model)
        model = super().attach(model)
        if how := self.config.start_in_the_base:
            from llmft_adapters.lora import init_weights

            init_weights.start(model, how)
        return self.prepared(model, kept)

    def load(self, model: Any, folder: Path) -> Any:
        ends.refuse_other_base(model, folder)
        kept = self._own_biases(model)
        if self.config.start_in_the_base:
            from llmft_adapters.lora import init_weights

            return self.prepared(init_weights.load(model, folder, self.peft_config(model)), kept)
        return self.prepared(super().load(model, folder), kept)

    def prepared(self, model: Any, kept: Any) -> Any:
        """Return PEFT's model ready to train; `kept` are the base's own biases."""
        from llmft_adapters.lora.layer import take_over

        take_over(model)
        model.base_biases = kept
        if self.config.pure_bf16:
            _in_bfloat16(model)
        return model

    def peft_config(self, model: Any) -> Any:
        """Return PEFT's config for this model, globs resolved to its layers' names."""
        from peft import LoraConfig as PeftLoraConfig
        from peft import TaskType

        config = self.config
        return PeftLoraConfig(
            task_type=TaskType.CAUSAL_LM,
            r=config.r,
            # PEFT's is a whole number; written alike however the recipe writes it.
            lora_alpha=int(alpha) if (alpha := config.lora_alpha) == int(alpha) else alpha,
            lora_dropout=config.lora_dropout,
            bias=config.bias,
            fan_in_fan_out=any(type(m).__name__ == "Conv1D" for m in model.modules()),
            target_modules=targets_for_peft(model, config),
            target_parameters=sorted(adapted_experts(model, config)) or None,
            use_rslora=config.use_rslora,
            init_lora_weights=config.init_lora_weights if not config.start_in_the_base else True,
            modules_to_save=whole_layers_for_peft(model, config),
            trainable_token_indices=token_rows.rows_for_peft(model, config),
            rank_pattern=values_for_peft(model, config, config.rank_pattern),
            alpha_pattern=values_for_peft(model, config, config.alpha_pattern),
        )

    def _own_biases(self, model: Any) -> Any:
        if self.config.bias == "none":
            return ()
        adapted = self.config.bias == "lora_only"
        return own_biases(model, adapted_layers(model, self.config) if adapted else None)

    def parameter_groups(
        self, model: Any, train: TrainSettings
    ) -> Sequence[Mapping[str, Any]] | None:
        ratio = self.config.loraplus_lr_ratio
        if ratio is None:
            return None
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        return [
            {"params": [p for n, p in named if "lora_B" not in n]},
            {
                "params": [p for n, p in named if "lora_B" in n],
                "lr": train.learning_rate * ratio,
            },
        ]

    def save(self, model: Any, folder: Path) -> None:
        if self.config.start_in_the_base:
            from llmft_adapters.lora import init_weights

            init_weights.save(model, folder)
        else:
            super().save(model, folder)

    @contextmanager
    def disabled(self, model: Any) -> Iterator[Any]:
        with put_back(model.base_biases), super().disabled(model):
            yield model


def _in_bfloat16(model: Any) -> None:
    """Give what is trained bfloat16 values, but for DoRA's magnitudes.

    Their steps are smaller than bfloat16 can hold (TRL 1.16, SFTTrainer.__init__).
    """
    import torch

    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_magnitude_vector" not in name:
            parameter.data = parameter.data.to(torch.bfloat16)


@hookimpl
def llmft_adapters() -> list[type[Lora]]:
    return [Lora]
