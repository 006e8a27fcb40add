"""For each setting of PEFT's further methods, a value away from its default, and that it acts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from llmft_adapters.peft_methods.c3a import C3A
from llmft_adapters.peft_methods.fourierft import FourierFT
from llmft_adapters.peft_methods.hra import Hra
from llmft_adapters.peft_methods.ia3 import Ia3
from llmft_adapters.peft_methods.loha import LoHa
from llmft_adapters.peft_methods.lokr import LoKr
from llmft_adapters.peft_methods.miss import Miss
from llmft_adapters.peft_methods.oft import Oft
from llmft_adapters.peft_methods.randlora import RandLora
from llmft_adapters.peft_methods.shira import Shira
from llmft_adapters.peft_methods.vblora import VBLoRA
from llmft_adapters.peft_methods.vera import Vera
from peft.tuners.tuners_utils import BaseTunerLayer

from llmft.modeling.tiny_models import tiny_llama
from llmft.testing import measures
from tests.every_setting import Case, Lab

EVERY = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def of_layers(cls: type) -> dict[str, Case]:
    """Return the cases of how layers are chosen, which all methods share."""

    def layers(config: Any) -> list[str]:
        model = cls(config).attach(tiny_llama())
        return [
            name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)
        ]

    def ends(config: Any, lab: Lab) -> set[str]:
        return {name.rpartition(".")[2] for name in layers(config)} & EVERY

    def numbers(config: Any, lab: Lab) -> set[str]:
        return {name.split("layers.")[1][0] for name in layers(config)}

    def whole(config: Any, lab: Lab) -> bool:
        model = cls(config).attach(tiny_llama())
        return any("lm_head" in n and p.requires_grad for n, p in model.named_parameters())

    usual = {"k_proj", "v_proj", "down_proj"} if cls is Ia3 else EVERY
    return {
        "target_modules": Case(["q_proj", "down_*"], ends, {"q_proj", "down_proj"}, was=usual),
        "exclude_modules": Case(["v_proj"], ends, usual - {"v_proj"}, was=usual),
        "layers_to_transform": Case([1], numbers, {"1"}, was={"0", "1"}),
        "modules_to_save": Case(["lm_head"], whole, True, was=False),
    }


def acts(cls: type, name: str, usual: Any) -> Callable[[Any, Lab], Any]:
    """Return what tells a setting as PEFT got it, and whether the usual one computes the same.

    That is: how many numbers are trained, what they start as, and their gradients in training.
    """

    def effect(config: Any) -> tuple[float, ...]:
        measures.seed()
        model = cls(config).attach(tiny_llama())
        learnt = measures.learnt(model).values()
        start = sum(float(p.detach().double().pow(2).sum()) for p in learnt)
        measures.nudge(model)
        found = measures.gradients(model).values()
        slope = sum(float(g.double().pow(2).sum()) for g in found if g is not None)
        return sum(p.numel() for p in learnt), start, slope

    def see(config: Any, lab: Lab) -> Any:
        told = getattr(cls(config).peft_config(tiny_llama()), name)
        return told, effect(config) != effect(config.model_copy(update={name: usual}))

    return see


def kept(cls: type) -> Callable[[Any, Lab], bool]:
    """Return what tells whether the random matrices are saved."""

    def see(config: Any, lab: Lab) -> bool:
        folder = lab.folder / str(config.save_projection)
        adapter = cls(config)
        adapter.save(adapter.attach(tiny_llama()), folder)
        held = measures.saved_tensors(folder)
        return any(name.rpartition(".")[2].endswith(("_A", "_B")) for name in held)

    return see


def cases(cls: type, base: dict[str, Any], **values: Any) -> dict[str, Case]:
    """Return a method's cases. base: what the block needs to fit a tiny model."""
    found = {}
    for name, value in values.items():
        value, more = value if isinstance(value, tuple) else (value, {})
        see = acts(cls, name, base.get(name, cls.Config.model_fields[name].default))
        found[name] = Case(value, see, (value, True), {**base, **more}, alone=name in base)
    return found | {
        name: replace(case, also={**base, **case.also}) for name, case in of_layers(cls).items()
    }


def inner(config: Any, lab: Lab) -> set[str]:
    model = Ia3(config).attach(tiny_llama())
    return {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if getattr(module, "is_feedforward", False)
    }


PEFT_METHODS: dict[type, dict[str, Case]] = {
    Vera: cases(Vera, {}, r=5, vera_dropout=0.5, d_initial=0.7, projection_prng_key=3)
    | {"save_projection": Case(False, kept(Vera), False, was=True)},
    Ia3: of_layers(Ia3)
    | {"feedforward_modules": Case(["v_proj"], inner, {"v_proj"}, was={"down_proj"})},
    Oft: cases(
        Oft, {}, oft_block_size=4,
        block_share=(True, {"oft_block_size": 4}), use_cayley_neumann=False,
        num_cayley_neumann_terms=2,
    ),
    LoHa: cases(LoHa, {}, r=3, alpha=20, rank_dropout=0.5, module_dropout=0.5),
    LoKr: cases(
        LoKr, {"r": 2}, r=3, alpha=20, rank_dropout=0.5, module_dropout=0.5,
        rank_dropout_scale=(True, {"rank_dropout": 0.5}), decompose_both=(True, {"r": 1}),
        decompose_factor=2,
    ),
    VBLoRA: cases(
        VBLoRA, {"num_vectors": 16, "vector_length": 8}, r=3, num_vectors=20, vector_length=4,
        topk=3, vblora_dropout=0.5, init_vector_bank_bound=0.5, init_logits_std=0.9,
    ),
    FourierFT: cases(
        FourierFT, {"n_frequency": 40}, n_frequency=30, scaling=9.0, random_loc_seed=5,
        init_weights=True,
    ),
    RandLora: cases(
        RandLora, {}, r=5, randlora_alpha=9.0, randlora_dropout=0.5, projection_prng_key=3,
        sparse=True, very_sparse=True,
    )
    | {"save_projection": Case(False, kept(RandLora), False, was=True)},
    C3A: cases(C3A, {"block_size": 4}, block_size=8, init_weights="gaussian"),
    Hra: cases(Hra, {}, r=4, apply_GS=True),
    Shira: cases(Shira, {"r": 2}, r=3, random_seed=5),
    Miss: cases(
        Miss, {"r": 4}, r=8, miss_dropout=0.5, init_weights="bat",
        mini_r=(2, {"init_weights": "mini"}),
    ),
}  # fmt: skip
