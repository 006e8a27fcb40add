"""Prompt tuning: virtual tokens, trained directly (Lester et al. 2021)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import model_validator

from llmft.api import EnvironmentFault, Field, Line, Refusal, hookimpl
from llmft.toolkit import token_ids
from llmft_adapters.soft_prompts.soft_prompt import SoftPrompt, SoftPromptConfig, attention_heads


class PromptTuning(SoftPrompt["PromptTuning.Config"]):
    """Prompt tuning: virtual tokens before the text, trained directly, without a network."""

    method = "prompt"
    UNSTATED: ClassVar[dict[str, Any]] = {
        "prompt_tuning_init": "RANDOM", "prompt_tuning_init_text": None,
        "tokenizer_name_or_path": None,
    }  # fmt: skip

    class Config(SoftPromptConfig):
        """PEFT's PromptTuningConfig, by its own names."""

        prompt_tuning_init: Literal["RANDOM", "TEXT", "SAMPLE_VOCAB"] = Field(
            "RANDOM",
            description="how the virtual tokens are initialised: RANDOM, from the tokens of a TEXT"
            " (repeated or cut to num_virtual_tokens), or from random tokens of the vocabulary",
        )
        prompt_tuning_init_text: Line | None = Field(
            None, description="the text that TEXT initialises them from"
        )
        tokenizer_name_or_path: Line | None = Field(
            None, description="the tokenizer of that text; default: the model's own"
        )

        @model_validator(mode="after")
        def _text_for_text(self) -> PromptTuning.Config:
            is_text = self.prompt_tuning_init == "TEXT"
            if is_text and not self.prompt_tuning_init_text:
                raise ValueError("prompt_tuning_init: TEXT needs prompt_tuning_init_text")
            for name in ("prompt_tuning_init_text", "tokenizer_name_or_path"):
                if getattr(self, name) and not is_text:
                    raise ValueError(f"{name} is read only with prompt_tuning_init: TEXT")
            return self

    def check(self, model: Any) -> Iterable[Refusal]:
        yield from super().check(model)
        if self.config.prompt_tuning_init != "TEXT":
            return
        path = self._tokenizer(model)
        if not path:
            yield (
                ("prompt_tuning_init",),
                "this model came from no folder, so that there is no tokenizer for the text",
                "name one in tokenizer_name_or_path",
            )
            return
        key = "tokenizer_name_or_path"
        key = key if self.config.tokenizer_name_or_path else "prompt_tuning_init"
        ids = _ids(path, self.config.prompt_tuning_init_text)
        words = model.get_input_embeddings().num_embeddings
        if ids is None:
            what = f"no tokenizer for the text can be loaded from '{path}'"
            yield (key,), what, "name a folder or a hub id in tokenizer_name_or_path"
        elif ids and max(ids) >= words:
            what = f"the tokenizer in '{path}' gives the text an id of {max(ids)}"
            yield (key,), f"{what}, and this model has {words} tokens", "name the model's own"

    def peft_config(self, model: Any) -> Any:
        from peft import PromptTuningConfig, TaskType

        config = model.config.get_text_config()
        is_text = self.config.prompt_tuning_init == "TEXT"
        return PromptTuningConfig(
            task_type=TaskType.CAUSAL_LM,
            num_virtual_tokens=self.config.num_virtual_tokens,
            num_transformer_submodules=1,
            num_layers=config.num_hidden_layers,
            num_attention_heads=attention_heads(model) or 1,  # PEFT asks, and does not read it
            token_dim=model.get_input_embeddings().embedding_dim,
            prompt_tuning_init=self.config.prompt_tuning_init,
            prompt_tuning_init_text=self.config.prompt_tuning_init_text,
            tokenizer_name_or_path=self._tokenizer(model) if is_text else None,
        )

    def wrapped(self, model: Any, config: Any) -> Any:
        from peft import PromptEmbedding

        from llmft_adapters.soft_prompts.model import SoftPromptModel

        encoder = PromptEmbedding(config, model.get_input_embeddings())
        return SoftPromptModel(model, encoder, config.num_virtual_tokens)

    def load(self, model: Any, folder: Path) -> Any:
        # What is loaded needs no start: neither a tokenizer nor a draw.
        plain = {"prompt_tuning_init": "RANDOM", "prompt_tuning_init_text": None}
        config = self.config.model_copy(update={**plain, "tokenizer_name_or_path": None})
        return super(PromptTuning, PromptTuning(config)).load(model, folder)

    def _tokenizer(self, model: Any) -> str | None:
        return self.config.tokenizer_name_or_path or model.name_or_path or None


def _ids(path: str, text: str | None) -> list[int] | None:
    """Return a text's ids as PEFT takes them; None where there is no such tokenizer."""
    try:
        return token_ids(path, text or "")
    except EnvironmentFault as error:
        if error.faults[0].code == "E212":  # it is there, and takes too long
            raise
        return None


@hookimpl
def llmft_adapters() -> list[type[PromptTuning]]:
    return [PromptTuning]
