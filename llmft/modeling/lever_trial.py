"""A small random copy of a model, and whether a path of ours gives plain transformers' numbers."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from llmft.api import Encoded
from llmft.api.rows import IGNORED
from llmft.modeling import attention
from llmft.modeling.dropout import without_dropout
from llmft.modeling.fused import fuse
from llmft.modeling.levers import ATTRIBUTE, Fused, Levers
from llmft.modeling.tiny_configs import SMALL_ENOUGH, TOO_LARGE, TOO_WIDE, small_config

LENGTHS = (31, 20, 23)
PROMPT = 12
"""Tokens without a label: so many that the last layer is narrowed."""
CUTS = (7, 16, 30)
"""So many tokens of a row are read without the rest of it."""
CLOSE = 1e-4
"""By how much of itself a loss, a state or a logit may be off, in float32."""
CLOSE_GRADIENT = 2e-3
CLOSE_IN_HALF = 0.05


@dataclass
class Trial:
    """The copy, its rows, and what plain transformers say of each row alone."""

    model: Any
    rows: list[Encoded]
    dense: str
    takes_varlen: bool
    losses: torch.Tensor
    gradient: torch.Tensor

    @classmethod
    def of(cls, config: Any, dense: str, fused: Fused = "none") -> Trial:
        """Return a trial of a config. dense: the attention code for padded batches.

        fused: the kernels that the copy has, once plain transformers' numbers are known.

        Raises what the architecture raises where no small copy of it can be made.
        """
        config, make = config.get_text_config(), _class(config)._from_config
        if _parameters(make, config) <= SMALL_ENOUGH:
            return cls._of(make, config, dense, fused)
        try:
            small = small_config(config)
            _limit(_parameters(make, small), TOO_LARGE)
            return cls._of(make, small, dense, fused)
        except Exception:  # sizes that do not fit together: those of the config itself do
            shallow = small_config(config, narrow=False)
            _limit(_parameters(make, shallow), TOO_WIDE)
            return cls._of(make, shallow, dense, fused)

    @classmethod
    def _of(cls, make: Any, config: Any, dense: str, fused: Fused) -> Trial:
        from llmft.system.machine import device

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = make(copy.deepcopy(config), attn_implementation=dense).float()
            _stir(model)
        model = model.to(device()).requires_grad_(False).train()
        takes = attention.supports(type(model), model.config)
        rows = _rows(model)
        fuse(model, "none")
        losses, gradient = _plainly(model, rows)
        fuse(model, fused)
        return cls(model, rows, dense, takes, losses, gradient)

    def copied_model(self) -> Any:
        """Return a copy of the model; what some keep of a pass (a recurrent state) is detached."""
        held = [value for module in self.model.modules() for value in vars(module).values()]
        kept = [t for t in held if isinstance(t, torch.Tensor) and t.grad_fn is not None]
        return copy.deepcopy(self.model, {id(tensor): tensor.detach().clone() for tensor in kept})

    def looks_ahead(self) -> str:
        """Return how far a token that comes later changes a logit; '' where none does."""
        ids = torch.tensor([self.rows[0].input_ids], device=next(self.model.parameters()).device)
        with without_dropout(self.model), torch.no_grad():
            whole = _logits(self.model, ids)
            for seen in CUTS:
                want, got = _logits(self.model, ids[:, :seen]), whole[:, :seen]
                if not _close(got, want, of_norm=True):
                    most = float((got - want).norm() / want.norm())
                    return f"what follows token {seen} changes the logits before it by {most:.1%}"
        return ""

    def wrong(self, levers: Levers, dtype: str = "float32") -> str:
        """Return what is wrong with the rows' losses in one batch; '' where nothing is."""
        from llmft.modeling.forward import label_nll

        def found() -> str:
            if dtype != "float32":
                half = self.copied_model().to(getattr(torch, dtype))
                with torch.no_grad():
                    return self._off(label_nll(half, self.rows).per_row(len(self.rows)), half=True)
            with _watched(self.model) as watched:
                losses = label_nll(self.model, self.rows).per_row(len(self.rows))
                gradient = watched.gradient(losses)
            apart = float((gradient - self.gradient).norm() / self.gradient.norm())
            if not apart <= CLOSE_GRADIENT:
                return f"the gradient is {apart:.1%} off"
            return self._off(losses)

        return self._with(levers, found)

    def _off(self, losses: torch.Tensor, *, half: bool = False) -> str:
        most = float(((losses.detach().cpu() - self.losses) / self.losses).abs().max())
        return "" if most <= (CLOSE_IN_HALF if half else CLOSE) else f"a loss is {most:.2%} off"

    def wrong_shared(self, levers: Levers) -> str:
        """Return what is wrong with two rows that share a prompt; '' where nothing is."""
        from llmft.modeling.forward import label_nll

        first, other = self.rows[0], self.rows[1]
        n = PROMPT + 4
        prompt = (IGNORED,) * n
        pair = [
            Encoded(first.input_ids, prompt + first.input_ids[n:], "one"),
            Encoded(
                first.input_ids[:n] + other.input_ids[3:], prompt + other.input_ids[3:], "other"
            ),
        ]
        with without_dropout(self.model), torch.no_grad():
            want = torch.stack([_alone(self.model, row) for row in pair]).cpu()

        def found() -> str:
            with torch.no_grad():
                got = label_nll(self.model, pair, [(0, 0), (0, n)]).per_row(2).cpu()
            return "" if _close(got, want) else "a loss is off"

        return self._with(levers, found)

    def wrong_states(self, levers: Levers) -> str:
        """Return what is wrong with the states that a reward model's head reads; '' if nothing."""
        from llmft.modeling.forward import head_input, last_hidden

        with without_dropout(self.model), torch.no_grad():
            want = torch.cat([head_input(self.model, row.input_ids)[:, -1] for row in self.rows])

        def found() -> str:
            with torch.no_grad():
                got = last_hidden(self.model, self.rows)
            return "" if _close(got, want, of_norm=True) else "a state is off"

        return self._with(levers, found)

    def wrong_decoding(self, levers: Levers) -> str:
        """Return what is wrong with tokens read one by one; '' where nothing is."""
        from llmft.modeling.decoding import dense_attention
        from llmft.modeling.token_reader import reader

        device = next(self.model.parameters()).device
        prompts = [list(self.rows[0].input_ids[:17]), *[list(self.rows[2].input_ids[:9])] * 2]
        more = [list(self.rows[1].input_ids[k : k + 3]) for k in range(3)]

        def found() -> str:
            with torch.no_grad(), dense_attention(self.model):
                texts = [list(prompt) for prompt in prompts]
                read_on = reader(self.model, prompts, device)
                got = read_on.logits
                for step in range(4):
                    want = torch.cat(
                        [
                            _logits(self.model, torch.tensor([t], device=device))[:, -1]
                            for t in texts
                        ]
                    )
                    if not _close(got, want, of_norm=True):
                        return f"the logits of token {step} are off"
                    if step == 3:
                        return ""
                    ids = torch.tensor([m[step] for m in more[: len(texts)]], device=device)
                    keep = torch.tensor([0, 2], device=device) if step == 1 else None
                    texts = [[*t, int(i)] for t, i in zip(texts, ids, strict=True)]
                    texts = [texts[0], texts[2]] if step == 1 else texts
                    got = read_on.read(ids, keep)
            return ""

        return self._with(levers, found)

    def _with(self, levers: Levers, found: Any) -> str:
        """Return what `found` says while the model takes these levers; an error is wrong too."""
        setattr(self.model, ATTRIBUTE, levers)
        try:
            with without_dropout(self.model):
                if levers.padding_free:
                    attention.register()
                    self.model.set_attn_implementation(attention.NAME)
                said: str = found()
                return said
        except Exception as error:  # a path that fails on an architecture is not one to take
            return f"{type(error).__name__}: {error}"[:200]
        finally:
            if levers.padding_free:
                self.model.set_attn_implementation(self.dense)
            delattr(self.model, ATTRIBUTE)
            self.model.train()


def _class(config: Any) -> Any:
    """Return the causal model of a config, which may be that of its text alone.

    Raises KeyError where there is none.
    """
    from transformers import CONFIG_MAPPING
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING as KNOWN
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as NAMES

    text = type(config.get_text_config())
    if text in KNOWN:
        return KNOWN[text]
    beside = [kind for kind in NAMES if CONFIG_MAPPING[kind].__module__ == text.__module__]
    found = (KNOWN[CONFIG_MAPPING[kind]] for kind in beside)  # Emu3's is known by the whole only
    return {model.config_class: model for model in found}[text]


def _limit(count: int, most: int) -> None:
    if count > most:
        raise ValueError(f"it still has {count:,} parameters")


def _parameters(make: Any, config: Any) -> int:
    with torch.device("meta"):
        # Never by the attention that the config names: a folder from elsewhere may name any code.
        model = make(copy.deepcopy(config), attn_implementation="eager")
        return sum(p.numel() for p in model.parameters())


def _stir(model: Any) -> None:
    """Give weights a size at which attention, sinks and positions show in the loss."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0, 0.5 if "embed" in name or "wte" in name else 0.1)
            elif "sink" in name:
                parameter.normal_(0, 1.0)
            else:  # norms, biases, decays: at their start they may hide what they do
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        # Logits so far apart that a cap on them shows.
        model.get_output_embeddings().weight.normal_(0, 0.5)


def _rows(model: Any) -> list[Encoded]:
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    words = min(end.weight.shape[0] for end in ends)  # an embedding may have rows of no text
    random = torch.Generator().manual_seed(0)
    rows = []
    for number, length in enumerate(LENGTHS):
        ids = tuple(torch.randint(min(5, words - 1), words, (length,), generator=random).tolist())
        rows.append(Encoded(ids, (IGNORED,) * PROMPT + ids[PROMPT:], f"row {number}"))
    return rows


def _plainly(model: Any, rows: Sequence[Encoded]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each row's loss, alone in plain transformers, and the embedding's gradient."""
    with without_dropout(model), _watched(model) as watched:
        losses = torch.stack([_alone(model, row) for row in rows])
        gradient = watched.gradient(losses)
    return losses.detach().cpu(), gradient


class _watched:
    """While it is entered, the gradient at the embedding's output can be asked for.

    The weight stays frozen, as it is under an adapter: it may be the output layer's too.
    """

    def __init__(self, model: Any) -> None:
        self.layer = model.get_input_embeddings()
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __enter__(self) -> _watched:
        self.hook = self.layer.register_forward_hook(self._see)
        return self

    def __exit__(self, *_: Any) -> None:
        self.hook.remove()

    def _see(self, _: Any, given: Any, out: torch.Tensor) -> torch.Tensor:
        leaf = out.detach().requires_grad_(True)
        self.seen.append((given[0], leaf))
        return leaf.clone()  # some scale it in place, which no leaf may be

    def gradient(self, losses: torch.Tensor) -> torch.Tensor:
        """Return the gradient of the summed losses, added up over each token id, (V, D)."""
        leaves = [leaf for _, leaf in self.seen]
        parts = torch.autograd.grad(losses.sum(), leaves, allow_unused=True)
        total = leaves[0].new_zeros(self.layer.weight.shape[0], leaves[0].shape[-1])
        for (ids, _), part in zip(self.seen, parts, strict=True):
            if part is not None:
                total.index_add_(0, ids.flatten(), part.flatten(0, -2))
        return total


def _alone(model: Any, row: Encoded) -> torch.Tensor:
    ids = torch.tensor([row.input_ids], device=next(model.parameters()).device)
    logits = _logits(model, ids)[0].float()
    labels = torch.tensor(row.labels, device=ids.device)
    return torch.nn.functional.cross_entropy(
        logits[:-1], labels[1:], ignore_index=IGNORED, reduction="sum"
    )


def _logits(model: Any, ids_BT: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=ids_BT, use_cache=False).logits
    return found


def _close(got: torch.Tensor, want: torch.Tensor, *, of_norm: bool = False) -> bool:
    if of_norm:
        return bool((got - want).norm() <= 10 * CLOSE * want.norm())
    return bool(((got - want).abs() <= CLOSE * want.abs()).all())
