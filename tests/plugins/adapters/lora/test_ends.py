"""LoRA on the embedding and on the output layer, against plain PEFT and plain transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from llmft_adapters.dora import Dora
from llmft_adapters.lora import Lora
from llmft_adapters.lora.targets import adapted_layers
from safetensors.torch import load_file

from llmft.api import CheckpointError, Encoded
from llmft.modeling import forward, peft_folder, token_stats
from llmft.modeling.forward import label_nll
from llmft.testing import measures, tiny_gpt2, tiny_llama

BOTH = ["embed_tokens", "lm_head"]
ROWS = [
    Encoded((5, 6, 7, 8, 9), (-100, -100, 7, 8, 9)),
    Encoded((11, 12, 13), (-100, 12, 13)),
]


def lora(kind: Any = Lora, **settings: Any) -> Any:
    given = {"r": 2, "target_modules": ["q_proj", *BOTH], **settings}
    return kind(kind.Config(method=kind.method, **given))


def untied_gpt2() -> Any:
    model = tiny_gpt2()
    model.config.tie_word_embeddings = False
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight) * 0.02)
    return model


def attached(adapter: Any, base: Any) -> Any:
    measures.seed()
    model = adapter.attach(base)
    measures.nudge(model)
    return model


def of_plain_peft(model: Any, base: Any) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Return each row's loss, summed over labels, and the gradients, by PEFT and transformers."""
    from peft import get_peft_model

    plain = get_peft_model(base, model.peft_config["default"])
    learnt = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            parameter.copy_(learnt[name])
    losses = []
    for row in ROWS:
        ids, labels = torch.tensor([row.input_ids]), torch.tensor([row.labels])
        count = int((labels != -100).sum())
        losses.append(plain(input_ids=ids, labels=labels).loss * count)
    sum(losses).backward()
    grads = {n: p.grad for n, p in plain.named_parameters() if p.requires_grad}
    return [float(loss.detach()) for loss in losses], grads


@pytest.mark.parametrize("many", [False, True], ids=["all logits at once", "a few at a time"])
@pytest.mark.parametrize(("kind", "base", "targets"), [
    (Lora, tiny_llama, ["q_proj", *BOTH]),
    (Dora, tiny_llama, ["v_proj", *BOTH]),
    (Lora, untied_gpt2, ["c_attn", "wte", "lm_head"]),
])  # fmt: skip
def test_loss_and_gradient_are_those_of_plain_peft(
    kind: Any, base: Any, targets: Any, many: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if many:
        monkeypatch.setattr(forward, "LOGITS_AT_ONCE", 300)
    adapter, plain = lora(kind, target_modules=targets, lora_alpha=5), base()
    assert not list(adapter.check(base().to("meta")))
    measures.pack_padding_free(plain)
    model = attached(adapter, plain)
    nll = label_nll(model, ROWS).per_row(2)
    nll.sum().backward()
    losses, grads = of_plain_peft(model, base())
    assert nll.tolist() == pytest.approx(losses, rel=1e-5)
    own = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert own.keys() == grads.keys()
    assert any("lora_embedding_A" in name for name in own)
    assert any("lm_head" in name for name in own)
    for name, wanted in grads.items():
        assert measures.distance(own[name], wanted) <= 1e-5


@pytest.mark.parametrize("few", [False, True])
def test_what_policy_gradients_read_is_that_of_plain_peft(
    few: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if few:
        monkeypatch.setattr(token_stats, "LOGITS_AT_ONCE", 300)
    model = attached(lora(), tiny_llama())
    found = token_stats.token_stats(model, ROWS)
    per_row = torch.zeros(2).index_add(0, found.row_N, -found.logps_N)
    per_row.sum().backward()
    losses, grads = of_plain_peft(model, tiny_llama())
    assert per_row.tolist() == pytest.approx(losses, rel=1e-5)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert measures.distance(parameter.grad, grads[name]) <= 1e-5


def test_switched_off_it_is_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = lora()
    model = attached(adapter, tiny_llama())
    wanted = token_stats.token_stats(tiny_llama(), ROWS)
    for at_once in (2**24, 300):
        monkeypatch.setattr(forward, "LOGITS_AT_ONCE", at_once)
        monkeypatch.setattr(token_stats, "LOGITS_AT_ONCE", at_once)
        with adapter.disabled(model), torch.no_grad():
            found = token_stats.token_stats(model, ROWS)
        assert measures.distance(found.logps_N, wanted.logps_N) <= 1e-6
        assert measures.distance(found.entropy_N, wanted.entropy_N) <= 1e-5
        with adapter.disabled(model):
            off = label_nll(model, ROWS).nll_N.detach()
        assert measures.distance(off, label_nll(tiny_llama(), ROWS).nll_N) <= 1e-6


@pytest.mark.parametrize(("kind", "base", "targets"), [
    (Lora, tiny_llama, ["q_proj", *BOTH]),
    (Dora, tiny_llama, ["q_proj", *BOTH]),
    (Lora, untied_gpt2, ["c_attn", "wte", "lm_head"]),
])  # fmt: skip
def test_plain_peft_loads_what_is_saved_and_no_weight_of_the_base_is(
    kind: Any, base: Any, targets: Any, tmp_path: Path
) -> None:
    from peft import PeftModel

    adapter = lora(kind, target_modules=targets)
    model = attached(adapter, base())
    folder = measures.saved(adapter, model, tmp_path)
    held = load_file(folder / "adapter_model.safetensors")
    assert not [name for name in held if "base_layer" in name]
    (table,) = (tensor for name, tensor in held.items() if name.endswith("lora_embedding_A"))
    assert table.shape == (2, 300)
    loaded, answers = PeftModel.from_pretrained(base(), folder).eval(), measures.logits(model)
    assert measures.distance(measures.logits(loaded), answers) <= 1e-6
    merged = adapter.merge(model)
    assert measures.distance(measures.logits(merged), answers) <= 1e-4
    ends = merged.get_input_embeddings().weight, merged.get_output_embeddings().weight
    assert not torch.equal(*ends)


def test_an_adapter_of_peft_with_its_copies_of_the_base_is_gone_on_from(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    measures.seed()
    config = LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=16, target_modules=BOTH)
    theirs = get_peft_model(tiny_llama(), config)
    measures.nudge(theirs)
    theirs.save_pretrained(tmp_path, save_embedding_layers=True)
    found = peft_folder.read(str(tmp_path))
    assert "base_model.model.lm_head.base_layer.weight" in found.tensors
    adapter = lora(target_modules=BOTH)
    meta = tiny_llama().to("meta")
    assert not list(adapter.check_peft(meta, found.settings, found.tensors))
    (fault, *_) = lora(target_modules=BOTH, lora_alpha=4).check_peft(
        meta, found.settings, found.tensors
    )
    assert fault[0] == ("lora_alpha",)
    ours = adapter.load(tiny_llama(), tmp_path)
    assert measures.distance(measures.logits(ours), measures.logits(theirs)) <= 1e-6
    with pytest.raises(CheckpointError, match="copy of its base's"):
        adapter.load(tiny_llama(seed=1), tmp_path)


@pytest.mark.parametrize(("asked", "ends"), [
    ("all-linear", []),
    (["*", "?m_head*"], []),
    (["all-linear", "lm_head"], ["lm_head"]),
    (["?_proj", "model.embed_tokens"], ["model.embed_tokens"]),
    (r".*_proj|lm_head|model\.embed_tokens", ["model.embed_tokens", "lm_head"]),
])  # fmt: skip
def test_both_are_adapted_where_they_are_named(asked: Any, ends: list[str]) -> None:
    model = tiny_llama()
    found = adapted_layers(model, lora(target_modules=asked).config)
    assert [name for name in found if "layers" not in name] == ends
    assert len(found) - len(ends) == (8 if "?_proj" in asked else 14)


@pytest.mark.parametrize(("settings", "base", "key", "fact", "fix"), [
    ({"target_modules": ["q_proj", "lm_head"]}, "tied", ("target_modules", 1),
     "'lm_head' is one with the embedding", "trainable_token_indices"),
    ({"target_modules": ["embed_tokens"]}, "tied", ("target_modules", 0),
     "'model.embed_tokens' is one with the output layer", "method: full"),
    ({"target_modules": r".*\.q_proj|lm_head"}, "tied", ("target_modules",),
     "is one with the embedding", "exclude_modules: [lm_head]"),
    ({"target_modules": ["c_attn", "lm_head"]}, "gpt2", ("target_modules", 1),
     "is one with the embedding", "leave it out"),
    ({"init_lora_weights": "pissa"}, "llama", ("init_lora_weights",),
     "'model.embed_tokens' is an embedding", "leave it out"),
    ({"trainable_token_indices": [3], "target_modules": ["q_proj", "lm_head"]}, "llama",
     ("trainable_token_indices",), "'lm_head' gets an update already", "leave it out"),
    ({"modules_to_save": ["lm_head"]}, "llama", ("modules_to_save", 0), "adapted already",
     "leave it out"),
    ({"layers_to_transform": [0], "target_modules": ["q_proj", "lm_head"]}, "llama",
     ("target_modules", 1), "matches nothing in the layers", "leave it out"),
    ({"target_modules": ["q_proj", "lm_?ead"]}, "llama", ("target_modules", 1),
     "matches 'lm_head' only", "write lm_head"),
])  # fmt: skip
def test_what_cannot_be_is_refused_by_name(
    settings: Any, base: str, key: Any, fact: str, fix: str
) -> None:
    model = tiny_gpt2() if base == "gpt2" else tiny_llama()
    if base == "tied":
        model.config.tie_word_embeddings = True
        model.lm_head.weight = model.model.embed_tokens.weight
    (fault,) = lora(**settings).check(model.to("meta"))
    assert fault[0] == key
    assert fact in fault[1]
    assert fix in fault[2]


def test_rows_of_added_tokens_are_not_trained_beside_an_update_of_their_layer() -> None:
    model = tiny_llama().to("meta")
    model.llmft_new_token_ids = (5,)
    assert not list(lora(target_modules=["q_proj"]).check(model))
    (fault,) = lora(target_modules=["q_proj", "embed_tokens"]).check(model)
    assert fault[0] == ("target_modules",)
    assert "'model.embed_tokens' gets an update already" in fault[1]
