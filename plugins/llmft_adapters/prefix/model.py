"""A frozen base model with trained keys and values before the text's, in every layer."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from llmft_adapters.lora.layout import Layout
from llmft_adapters.prefix.cache import PrefixCache, kept_under_checkpointing
from llmft_adapters.soft_prompts.model import SoftPromptModel, takes, text_of


class PrefixModel(SoftPromptModel):
    """The base, and keys and values that stand before the text's in every layer."""

    def __init__(self, base: Any, encoder: nn.Module, n_virtual: int, layers: int, heads: int):
        super().__init__(base, encoder, n_virtual)
        self.layers, self.heads = layers, heads

    def keys_and_values(self, rows: int) -> list[torch.Tensor]:
        """Return each layer's keys and values, shape (2, rows, heads, P, D)."""
        prompts = self.prompts().to(self.base.get_input_embeddings().weight.dtype)
        pairs = prompts.view(1, self.n_virtual, self.layers * 2, self.heads, -1)
        return list(torch.split(pairs.permute(2, 0, 3, 1, 4).expand(-1, rows, -1, -1, -1), 2))

    def answer(self, input_ids: torch.Tensor, **inputs: Any) -> Any:
        """Return the base's output for the text after the prefix.

        Raises ValueError for rows padded on the left where that moves the prefix: beyond a window,
        or where the model counts columns. Pad on the right.
        """
        layout = Layout.of(input_ids, self.n_virtual, inputs)
        if layout.pads_left and self._moved_by_pads(input_ids.shape[1]):
            raise ValueError("pads behind a prefix move it out of this model's window, or farther")
        options: dict[str, Any] = {}
        if layout.text_bounds is None:
            options["attention_mask"] = self._before(layout.text_mask, 1)
        else:
            options["cu_seq_lens_q"] = layout.text_bounds
        if layout.positions is not None and takes(self.base, "position_ids"):
            options["position_ids"] = layout.positions[:, layout.columns]
        cache = PrefixCache(self.keys_and_values(len(input_ids)))
        with kept_under_checkpointing(self.base, cache):
            out = self.base(input_ids=input_ids, past_key_values=cache, **options, **inputs)
        out.past_key_values = None
        return out

    @torch.no_grad()
    def generate(self, input_ids: torch.Tensor, **inputs: Any) -> Any:
        """Return what the base's `generate` returns, going on from a cache that holds the prefix.

        Rows whose prefix pads would move, as out of the model's window, are done one by one.
        """
        if not self.enabled:
            return self.base.generate(input_ids=input_ids, **inputs)
        layout = Layout.of(input_ids, self.n_virtual, inputs)
        mask = layout.text_mask
        config = inputs.get("generation_config") or self.base.generation_config
        new = inputs.get("max_new_tokens") or config.max_new_tokens or 0
        if layout.pads_left and self._moved_by_pads(input_ids.shape[1] + new):
            rows = [self.generate(ids[m.bool()][None], **inputs)[0, int(m.sum()) :]
                    for ids, m in zip(input_ids, mask, strict=True)]  # fmt: skip
            answers = pad_sequence(rows, batch_first=True, padding_value=config.pad_token_id or 0)
            return torch.cat([input_ids, answers], dim=1)
        out = self.base.generate(
            # Any ids will do for what is in the cache already: they are not looked at.
            input_ids=self._before(input_ids, 0),
            attention_mask=self._before(mask, 1),
            past_key_values=DynamicCache([(k, v) for k, v in self.keys_and_values(len(input_ids))]),
            **inputs,
        )
        return text_of(out, lambda whole: whole[:, self.n_virtual :])

    @torch.no_grad()
    def prefill(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        """Read prompts padded on the left, after the prefix; see `SoftPromptModel.prefill`.

        None where pads behind the prefix might move it: how long answers get is not known here.
        """
        if self._moved_by_pads(None) and not bool(attention_mask.all()):
            return None
        mask = self._before(attention_mask, 1)
        options: dict[str, Any] = (
            {"logits_to_keep": 1} if takes(self.base, "logits_to_keep") else {}
        )
        if takes(self.base, "position_ids"):
            options["position_ids"] = (mask.cumsum(1) - 1)[:, self.n_virtual :]
        cache = DynamicCache([(k, v) for k, v in self.keys_and_values(len(input_ids))])
        out = self.base(
            input_ids=input_ids,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
            **options,
        )
        return out.logits[:, -1], out.past_key_values, mask

    def _before(self, text_BT: torch.Tensor, value: int) -> torch.Tensor:
        return F.pad(text_BT, (self.n_virtual, 0), value=value)

    def _moved_by_pads(self, width: int | None) -> bool:
        """Return whether pads behind the prefix change what so many columns make of it.

        So do windows, which hold columns, and distances that are counted in columns (MPT's alibi);
        Bloom's are counted in tokens. width: of the text; None: any.
        """
        config = self.base.config.get_text_config()
        windows = [w for name in _WINDOWS if (w := getattr(config, name, None)) is not None]
        if windows and (width is None or self.n_virtual + width > int(min(windows))):
            return True
        by_tokens = takes(self.base, "position_ids")
        return not by_tokens and not hasattr(self.base.base_model, "build_alibi_tensor")


_WINDOWS = ("sliding_window", "window_size", "attention_window_size", "attention_chunk_size")
