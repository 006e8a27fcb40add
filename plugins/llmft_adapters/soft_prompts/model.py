"""A frozen base model with virtual tokens before every text, as a module that answers like it."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from llmft_adapters.lora.layout import Layout


class SoftPromptModel(nn.Module):
    """The base, and an encoder of its virtual tokens. Logits are those of the text's own tokens.

    enabled: False lets the base answer alone.
    """

    def __init__(self, base: Any, encoder: nn.Module, n_virtual: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.encoder = encoder.to(base.device)
        self.n_virtual = n_virtual
        self.enabled = True
        self.train(base.training)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    def get_base_model(self) -> Any:
        """Return the base, which knows nothing of the virtual tokens."""
        return self.base

    def prompts(self) -> torch.Tensor:
        """Return the virtual tokens as the encoder has them now, shape (P, width)."""
        device = next(self.encoder.parameters()).device
        tokens: torch.Tensor = self.encoder(torch.arange(self.n_virtual, device=device)[None])[0]
        return tokens

    def forward(self, *args: Any, labels: torch.Tensor | None = None, **inputs: Any) -> Any:
        """Return the base's output for the text after the virtual tokens.

        labels: gives a loss: the mean over the text's tokens but the first, as the base's.
        """
        if not self.enabled:
            return self.base(*args, labels=labels, **inputs)
        out = self.answer(*args, **inputs)
        if labels is not None:
            predicted, target = out.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
            out.loss = F.cross_entropy(predicted.float(), target.to(predicted.device))
        return out

    def answer(self, input_ids: torch.Tensor, **inputs: Any) -> Any:
        """Return the base's output after virtual embeddings, for the text's own positions."""
        layout = Layout.of(input_ids, self.n_virtual, inputs)
        kept = layout.kept(inputs.pop("logits_to_keep", 0))
        chooses = takes(self.base, "logits_to_keep")
        options = {"logits_to_keep": kept} if chooses else {}
        if layout.positions is not None and takes(self.base, "position_ids"):
            options["position_ids"] = layout.positions
        if layout.bounds is None:
            options["attention_mask"] = layout.mask
        else:
            options["cu_seq_lens_q"] = layout.bounds
        out = self.base(inputs_embeds=self._embedded(input_ids, layout), **options, **inputs)
        if not chooses:
            out.logits = out.logits[:, kept]
        if getattr(out, "hidden_states", None) is not None:
            out.hidden_states = tuple(h[:, layout.columns] for h in out.hidden_states)
        return out

    @torch.no_grad()
    def generate(self, input_ids: torch.Tensor, **inputs: Any) -> Any:
        """Return what the base's `generate` returns for the text after the virtual tokens."""
        if not self.enabled:
            return self.base.generate(input_ids=input_ids, **inputs)
        layout = Layout.of(input_ids, self.n_virtual, inputs)
        out = self.base.generate(
            inputs_embeds=self._embedded(input_ids, layout), attention_mask=layout.mask, **inputs
        )
        return text_of(out, lambda new: torch.cat([_rows_like(input_ids, new), new], dim=1))

    @torch.no_grad()
    def prefill(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        """Read prompts padded on the left: the next token's logits (B, V), the cache, its mask.

        The base alone can read on from there. None: this model cannot keep a cache of these.
        """
        layout = Layout.of(input_ids, self.n_virtual, {"attention_mask": attention_mask})
        options: dict[str, Any] = (
            {"logits_to_keep": 1} if takes(self.base, "logits_to_keep") else {}
        )
        if layout.positions is not None and takes(self.base, "position_ids"):
            options["position_ids"] = layout.positions
        out = self.base(
            inputs_embeds=self._embedded(input_ids, layout),
            attention_mask=layout.mask,
            use_cache=True,
            **options,
        )
        return out.logits[:, -1], out.past_key_values, layout.mask

    def _embedded(self, input_ids_BT: torch.Tensor, layout: Layout) -> torch.Tensor:
        text_BTD = self.base.get_input_embeddings()(input_ids_BT)
        prompts_PD = self.prompts().to(text_BTD)
        return layout.laid(prompts_PD.expand(len(text_BTD), -1, -1), text_BTD)


def takes(model: Any, name: str) -> bool:
    """Return whether a model's forward has an argument of this name."""
    return name in inspect.signature(model.forward).parameters


def text_of(out: Any, change: Any) -> Any:
    """Return what `generate` gave, its token ids changed; it gives them bare or in an object."""
    if isinstance(out, torch.Tensor):
        return change(out)
    out.sequences = change(out.sequences)
    return out


def _rows_like(input_ids_BT: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    # Several answers to a prompt stand one after another.
    return input_ids_BT.repeat_interleave(len(new) // len(input_ids_BT), dim=0)
