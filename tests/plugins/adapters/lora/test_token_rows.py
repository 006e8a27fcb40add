"""Rows of the embedding trained beside LoRA: which ones, what PEFT loads, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from llmft_adapters.dora import Dora
from llmft_adapters.lora import Lora
from llmft_adapters.qlora import QLora

from llmft.testing import measures, tiny_gpt2, tiny_llama
from tests.plugins.adapters.conftest import quantised

ROWS = [252, 71]


def lora(kind: Any = Lora, **settings: Any) -> Any:
    given = {"r": 2, "trainable_token_indices": ROWS, **settings}
    return kind(kind.Config(method=kind.method, **given))


def tied_llama() -> Any:
    model = tiny_llama()
    model.config.tie_word_embeddings = True
    model.lm_head.weight = model.model.embed_tokens.weight
    return model


def trained(adapter: Any, base: Any) -> Any:
    torch.manual_seed(0)  # large steps from some starts make logits that float32 adds up otherwise
    model = adapter.attach(base)
    measures.train(model, steps=3, learning_rate=0.05)
    return model.eval()


@pytest.mark.parametrize("kind", [Lora, Dora])
@pytest.mark.parametrize("base", [tiny_llama, tied_llama, tiny_gpt2])
def test_only_the_rows_named_are_trained_and_merged(kind: Any, base: Any) -> None:
    adapter, plain = lora(kind), base()
    model = trained(adapter, base())
    rows = {n: p.shape[0] for n, p in measures.learnt(model).items() if "token_adapter" in n}
    assert list(rows.values()) == [2] * (2 if base is tiny_llama else 1)
    answers = measures.logits(model)
    with adapter.disabled(model):
        assert measures.same(measures.logits(model), measures.logits(plain))
    merged = adapter.merge(model)
    assert measures.distance(measures.logits(merged), answers) <= 1e-4
    for end in ("get_input_embeddings", "get_output_embeddings"):
        new, old = getattr(merged, end)().weight, getattr(plain, end)().weight
        moved = (new != old).any(1).nonzero().flatten().tolist()
        assert moved == sorted(ROWS)
    assert base is tiny_llama or (
        merged.get_output_embeddings().weight is merged.get_input_embeddings().weight
    )


@pytest.mark.parametrize("base", [tiny_llama, tied_llama])
def test_plain_peft_loads_the_rows_whatever_the_base_has_there(base: Any, tmp_path: Path) -> None:
    from peft import PeftModel

    adapter = lora()
    model = trained(adapter, base())
    folder = measures.saved(adapter, model, tmp_path)
    other = base()
    with torch.no_grad():
        for end in (other.get_input_embeddings(), other.get_output_embeddings()):
            end.weight[ROWS] = 7.0
    loaded = PeftModel.from_pretrained(other, folder).eval()
    assert measures.distance(measures.logits(loaded), measures.logits(model)) <= 1e-6


def test_rows_are_trained_beside_a_4_bit_base(tmp_path: Path) -> None:
    model = trained(lora(QLora), quantised(tiny_llama(), tmp_path, load_in_4bit=True))
    delta = model.get_input_embeddings().token_adapter.trainable_tokens_delta["default"]
    assert (delta != tiny_llama().model.embed_tokens.weight[ROWS]).any(1).all()


@pytest.mark.parametrize(("settings", "key", "fact"), [
    ({"trainable_token_indices": [1, 100_000]}, ("trainable_token_indices", 1), "no row 100000"),
    ({"trainable_token_indices": [1, 2, 1]}, ("trainable_token_indices", 2), "there twice"),
    ({"modules_to_save": ["lm_head"]}, ("trainable_token_indices",), "in full already"),
    ({"init_lora_weights": "pissa"}, ("init_lora_weights",), "holds no rows"),
])  # fmt: skip
def test_rows_that_cannot_be_trained_are_refused(settings: Any, key: Any, fact: str) -> None:
    (fault,) = lora(**settings).check(tiny_llama().to("meta"))
    assert fault[0] == key
    assert fact in fault[1]


def test_an_output_layer_with_a_bias_is_refused() -> None:
    model = tiny_llama()
    model.lm_head = torch.nn.Linear(32, model.config.vocab_size)
    (fault,) = lora().check(model)
    assert "'lm_head' is a Linear with more than a weight" in fault[1]


def test_an_adapter_of_peft_has_the_same_rows(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    from llmft.modeling import peft_folder

    config = LoraConfig(
        task_type="CAUSAL_LM", r=2, lora_alpha=16, target_modules=["q_proj"],
        trainable_token_indices=ROWS,
    )  # fmt: skip
    get_peft_model(tied_llama(), config).save_pretrained(tmp_path)
    found = peft_folder.read(str(tmp_path))

    def told(**settings: Any) -> list[Any]:
        adapter = lora(target_modules=["q_proj"], **settings)
        return list(adapter.check_peft(tied_llama().to("meta"), found.settings, found.tensors))

    assert not told()
    (fault,) = told(trainable_token_indices=[71, 252])
    assert fault[0] == ("trainable_token_indices",)
    assert "trainable_token_indices: [252, 71]" in fault[2]
