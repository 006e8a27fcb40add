"""PEFT's further methods through the bridge, against the public contract and plain PEFT."""

from __future__ import annotations

from typing import Any

import pytest
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
from peft import PeftModel

from llmft.testing import AdapterContract, measures, tiny_llama

SMALL: dict[type, Any] = {
    Vera: {"r": 8},
    Ia3: {},
    Oft: {"oft_block_size": 4},
    LoHa: {"r": 2},
    LoKr: {"r": 2},
    VBLoRA: {"r": 2, "num_vectors": 16, "vector_length": 8},
    FourierFT: {"n_frequency": 40, "init_weights": True},
    RandLora: {"r": 4, "save_projection": False},
    C3A: {"block_size": 4, "init_weights": True},
    Hra: {"r": 2},
    Shira: {"r": 2},
    Miss: {"r": 4},
}


OTHERS: list[tuple[type, dict[str, Any]]] = [
    (Vera, {"r": 8, "save_projection": False, "vera_dropout": 0.1}),
    (Ia3, {"target_modules": ["?_proj", "c_*"], "feedforward_modules": []}),
    (Oft, {"oft_block_size": 4, "block_share": True}),
    (LoKr, {"r": 2, "decompose_both": True, "layers_to_transform": [1]}),
    (C3A, {"block_size": 8, "init_weights": "gaussian"}),
    (Hra, {"r": 4, "apply_GS": True, "modules_to_save": ["lm_head"]}),
    (Miss, {"r": 4, "init_weights": "bat"}),
    (Miss, {"r": 4, "init_weights": "mini", "mini_r": 2}),
]


def _contract(method: type) -> type:
    others = [settings for one, settings in OTHERS if one is method]
    body = {"method_class": method, "configs": (SMALL[method], *others)}
    made = type(f"Test{method.__name__}", (AdapterContract,), body)
    return made if method in (Ia3, Oft) else pytest.mark.extended(made)


for _method in SMALL:
    globals()[f"Test{_method.__name__}"] = _contract(_method)


# --- beside plain PEFT ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", SMALL, ids=lambda method: method.method)
def test_plain_peft_loads_what_is_saved_and_answers_the_same(method, tmp_path):
    adapter = method(method.Config(method=method.method, **SMALL[method]))
    measures.seed()
    model = adapter.attach(tiny_llama())
    measures.train(model, steps=2, learning_rate=1e-2)
    adapter.save(model, tmp_path)
    measures.stir_random_state()
    plain = PeftModel.from_pretrained(tiny_llama(), tmp_path)
    assert measures.same(measures.logits(plain), measures.logits(model))


@pytest.mark.parametrize("method", SMALL, ids=lambda method: method.method)
def test_a_small_copy_of_any_model_takes_it(method):
    adapter = method(method.Config(method=method.method)).on_small_copy()
    assert not list(adapter.check(tiny_llama()))
    assert measures.learnt(adapter.attach(tiny_llama()))


@pytest.mark.parametrize(
    ("method", "settings", "key", "what", "fix"),
    [
        (Oft, {"oft_block_size": 5}, "oft_block_size", "does not divide the 32 inputs", "of 32"),
        (VBLoRA, {"vector_length": 64}, "vector_length", "64 does not divide the 32", "of 16"),
        (C3A, {"block_size": 24}, "block_size", "24 does not divide the 32 inputs", "of 16"),
        (FourierFT, {"n_frequency": 5000}, "n_frequency", "has 1024 coefficients", "than that"),
        (Shira, {"r": 17}, "r", "1024 entries", "at most 16"),
        (Miss, {"r": 33}, "r", "32 inputs", "at most 32"),
        (Miss, {"r": 6, "init_weights": "bat"}, "r", "6 does not divide", "divisor of 16"),
        (Miss, {"r": 4, "init_weights": "mini", "mini_r": 3}, "mini_r", "3 does not", "of 16"),
        (Ia3, {"feedforward_modules": ["lm_head"]}, "feedforward_modules", "none of", "leave"),
        (Vera, {"target_modules": ["qproj"]}, "target_modules", "no linear layer", "q_proj"),
    ],
)
def test_what_does_not_fit_a_layer_is_refused_before_weights_load(method, settings, key, what, fix):
    adapter = method(method.Config(method=method.method, **settings))
    (path, said, way), *_ = adapter.check(tiny_llama())
    assert (path[0], what in said, fix in way) == (key, True, True), (path, said, way)


def test_ia3_asks_for_names_where_peft_knows_none():
    model = tiny_llama()
    model.config.model_type = "nobodys"
    (path, said, way), *_ = Ia3(Ia3.Config(method="ia3")).check(model)
    assert path == ("target_modules",)
    assert "'nobodys'" in said
    assert "k_proj" in way


def test_ia3_scales_the_input_of_the_feed_forward_layers_that_are_named():
    def feedforward(**settings: Any) -> set[str]:
        model = Ia3(Ia3.Config(method="ia3", **settings)).attach(tiny_llama())
        return {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if getattr(module, "is_feedforward", False)
        }

    assert feedforward() == {"down_proj"}
    assert feedforward(feedforward_modules=["k_proj", "down_proj"]) == {"k_proj", "down_proj"}
    assert feedforward(feedforward_modules=[]) == set()
