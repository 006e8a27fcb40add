"""LoRA: low-rank updates beside frozen weights (Hu et al. 2021)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from llmft.api import Adapter, AdapterConfig, Field, Line, Refusal, TrainSettings, hookimpl


class Lora(Adapter["Lora.Config"]):
    """Low-rank adaptation: W x becomes W x + (alpha / r) B A x, with A and B trained."""

    method = "lora"
    mergeable = True
    supports_packing = True
    supports_shared_prompt = True

    class Config(AdapterConfig):
        """PEFT's LoraConfig, by its own names."""

        r: int = Field(8, ge=1, le=65_536, description="the rank of the update")
        lora_alpha: float = Field(16, gt=0, le=1e6, description="the update is scaled by alpha / r")
        lora_dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the update's input")
        bias: Literal["none"] = Field(
            "none",
            description="which biases are trained too; PEFT's 'all' and 'lora_only' change the"
            " base itself, so that it could not be had back by turning the adapter off",
        )
        target_modules: Literal["all-linear"] | list[Line] = Field(
            "all-linear",
            description="names or globs of the layers that get an update, such as"
            " [q_proj, v_proj]; all-linear takes every linear layer but the output",
        )
        use_rslora: bool = Field(False, description="scale by alpha / sqrt(r) instead")
        init_lora_weights: bool | Literal["gaussian", "orthogonal"] = Field(
            True, description="how A and B start; true: B = 0, so that nothing changes at first"
        )
        modules_to_save: list[Line] | None = Field(
            None, min_length=1, max_length=100, description="layers trained whole and saved along"
        )
        layers_to_transform: list[int] | None = Field(
            None, min_length=1, max_length=10_000, description="the numbers of the layers to adapt"
        )
        rank_pattern: dict[Line, int] = Field(
            default_factory=dict, max_length=1000, description="another rank for layers by name"
        )
        alpha_pattern: dict[Line, int] = Field(
            default_factory=dict, max_length=1000, description="another alpha for layers by name"
        )
        loraplus_lr_ratio: float | None = Field(
            None, gt=0, le=1e4, description="LoRA+: B's learning rate over A's (Hayou et al. 2024)"
        )

    def check(self, model: Any) -> Iterable[Refusal]:
        wanted = self.config.target_modules
        if wanted == "all-linear":
            return
        kinds = sorted({name.rpartition(".")[2] for name in linear_layers(model)})
        for number, pattern in enumerate(wanted):
            if not matching(model, pattern):
                yield (
                    ("target_modules", number),
                    f"'{pattern}' matches no linear layer of this model",
                    f"it has {', '.join(kinds)}; or write target_modules: all-linear",
                )

    def attach(self, model: Any) -> Any:
        from peft import get_peft_model

        return get_peft_model(model, self.peft_config(model))

    def peft_config(self, model: Any) -> Any:
        """Return PEFT's config for this model, globs resolved to its layers' names."""
        from peft import LoraConfig, TaskType

        config = self.config
        return LoraConfig(
            task_type=TaskType.CAUSAL_LM,
            r=config.r,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.lora_dropout,
            bias=config.bias,
            fan_in_fan_out=any(_is_conv1d(m) for m in model.modules()),
            target_modules=self._targets(model),
            use_rslora=config.use_rslora,
            init_lora_weights=config.init_lora_weights,
            modules_to_save=config.modules_to_save,
            layers_to_transform=config.layers_to_transform,
            rank_pattern=dict(config.rank_pattern),
            alpha_pattern=dict(config.alpha_pattern),
        )

    def _targets(self, model: Any) -> str | list[str]:
        wanted = self.config.target_modules
        if wanted == "all-linear":
            return "all-linear"
        plain = [name for name in wanted if not _is_glob(name)]
        globbed = [found for name in wanted if _is_glob(name) for found in matching(model, name)]
        return list(dict.fromkeys(plain + globbed))

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
        # "auto" would ask the hub whether the vocabulary has grown; it never does here.
        model.save_pretrained(folder, save_embedding_layers=False)

    def load(self, model: Any, folder: Path) -> Any:
        from peft import PeftModel

        return PeftModel.from_pretrained(model, folder, is_trainable=True)

    def disabled(self, model: Any) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = model.disable_adapter()
        return context

    def merge(self, model: Any) -> Any:
        return model.merge_and_unload(safe_merge=True)


def linear_layers(model: Any) -> list[str]:
    """Return the names of the layers that LoRA can adapt, the output layer left out."""
    import torch
    from transformers.pytorch_utils import Conv1D

    output = model.get_output_embeddings()
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not output
    ]


def _is_conv1d(module: Any) -> bool:
    """Return whether a layer keeps its weight transposed, as GPT-2's do."""
    return type(module).__name__ == "Conv1D"


def matching(model: Any, pattern: str) -> list[str]:
    """Return the layers whose name, or last part of it, is `pattern` or matches it as a glob."""
    if not _is_glob(pattern):
        return [n for n in linear_layers(model) if n == pattern or n.endswith(f".{pattern}")]
    return [
        name
        for name in linear_layers(model)
        if fnmatchcase(name, pattern) or fnmatchcase(name.rpartition(".")[2], pattern)
    ]


def _is_glob(name: str) -> bool:
    return any(mark in name for mark in "*?[")


@hookimpl
def llmft_adapters() -> list[type[Lora]]:
    return [Lora]
