"""What adapters have in common whose layers and files are PEFT's."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from llmft.api import Adapter, AdapterConfig
from llmft_adapters.vocabulary import is_within, vocabulary_layers

C = TypeVar("C", bound=AdapterConfig)
_SETS = ("target_modules", "exclude_modules", "target_parameters", "feedforward_modules")


class PeftAdapter(Adapter[C]):
    """An adapter that PEFT attaches, loads, saves, switches off and merges."""

    mergeable = True
    supports_packing = True
    supports_shared_prompt = True

    @abstractmethod
    def peft_config(self, model: Any) -> Any:
        """Return PEFT's config for this model, its layers by name."""

    def trains_new_tokens(self, model: Any) -> bool:
        whole = getattr(self.peft_config(model), "modules_to_save", None) or ()
        return all(is_within(name, whole) for name, _ in vocabulary_layers(model))

    def attach(self, model: Any) -> Any:
        from peft import get_peft_model

        return get_peft_model(model, self.peft_config(model))

    def load(self, model: Any, folder: Path) -> Any:
        from peft import PeftModel

        config = self.peft_config(model)  # the file's own could hold any pattern
        return PeftModel.from_pretrained(model, folder, is_trainable=True, config=config)

    def save(self, model: Any, folder: Path) -> None:
        for config in model.peft_config.values():  # PEFT's sets have another order in each process
            for name in _SETS:
                if isinstance(names := getattr(config, name, None), set):
                    setattr(config, name, sorted(names))
        # "auto" would ask the hub whether the vocabulary has grown; it never does here.
        model.save_pretrained(folder, save_embedding_layers=False)

    @contextmanager
    def disabled(self, model: Any) -> Iterator[Any]:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Careful, disabling adapter layers with bias")
            with model.disable_adapter():
                yield model

    def merge(self, model: Any) -> Any:
        if getattr(model, "is_quantized", False):
            raise NotImplementedError(
                "the base is quantised, and rounding it again would lose the update: load it"
                " without model.quantization to merge"
            )
        return model.merge_and_unload(safe_merge=True)
