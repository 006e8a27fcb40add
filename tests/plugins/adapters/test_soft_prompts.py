"""Prefix, p- and prompt tuning: PEFT's numbers, and what PEFT itself gets wrong."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from llmft_adapters.prefix import Prefix
from llmft_adapters.prompt import PromptTuning
from llmft_adapters.ptuning import PTuning
from peft import PeftModel
from pydantic import ValidationError
from transformers import AutoConfig, AutoModelForCausalLM

from llmft.api import Encoded, SamplingParams
from llmft.api.errors import TrustError
from llmft.api.model_settings import ModelSource
from llmft.evaluation.generation import generate
from llmft.modeling.base_model import BaseModel
from llmft.modeling.decoding import decode
from llmft.modeling.forward import label_nll
from llmft.modeling.recompute import checkpoint_layers
from llmft.testing import measures, tiny_gpt2, tiny_llama, tiny_model_folder, tiny_tokenizer

from .conftest import ARCHITECTURES, tiny

KINDS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "prefix": (Prefix, {}),
    "prefix-projected": (Prefix, {"prefix_projection": True, "encoder_hidden_size": 16}),
    "ptuning": (PTuning, {}),
    "ptuning-lstm": (PTuning, {"encoder_reparameterization_type": "LSTM"}),
    "prompt": (PromptTuning, {}),
    "prompt-sampled": (PromptTuning, {"prompt_tuning_init": "SAMPLE_VOCAB"}),
}
kinds = pytest.mark.parametrize("kind", KINDS)
SWEEP = [
    a if a in ("llama", "gpt2") else pytest.param(a, marks=pytest.mark.slow) for a in ARCHITECTURES
]
TEXTS = [[5, 6, 7, 8, 9, 10, 11], [20, 21, 22], [30]]


def made(kind: str, **settings: Any) -> Any:
    cls, own = KINDS[kind]
    block = {"method": cls.method, "num_virtual_tokens": 5, **own, **settings}
    return cls(cls.Config(**block))


def attached(adapter: Any, base: Any) -> Any:
    measures.seed()
    model = adapter.attach(base)
    measures.nudge(model)
    return model.eval()


def answers(model: Any, batch_size: int) -> list[str]:
    return generate(model, tiny_tokenizer(), TEXTS, max_new_tokens=6, batch_size=batch_size)


@pytest.mark.parametrize("kind", ["prefix", "ptuning", "prompt"])
def test_a_model_without_attention_has_prompts_and_no_prefix(kind):
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2, state_size=4)
    adapter, base = made(kind), MambaForCausalLM(config).requires_grad_(False)
    refusals = list(adapter.check(base))
    if kind == "prefix":
        ((path, said, fix),) = refusals
        assert path == ("method",)
        assert "a 'mamba' has no attention" in said
        assert "prompt" in fix
        return
    assert not refusals
    model = adapter.attach(base)
    label_nll(model, [Encoded((5, 6, 7), (-100, 6, 7))]).nll_N.sum().backward()
    trained = [p.grad for p in model.parameters() if p.requires_grad]
    assert any(g is not None and g.abs().sum() > 0 for g in trained)


@kinds
@pytest.mark.parametrize("architecture", SWEEP)
def test_plain_peft_gives_the_same_logits_from_the_saved_files(
    kind: str, architecture: str, tmp_path: Path
) -> None:
    adapter, base = made(kind), tiny(architecture)
    plain = measures.logits(base)
    model = attached(adapter, base)
    loaded = PeftModel.from_pretrained(
        tiny(architecture), measures.saved(adapter, model, tmp_path)
    ).eval()
    assert measures.distance(measures.logits(loaded), measures.logits(model)) <= 1e-5
    assert measures.distance(plain, measures.logits(model)) > 1e-2


@kinds
@pytest.mark.parametrize("architecture", SWEEP)
def test_a_batch_padded_on_the_left_is_answered_as_its_rows_alone(
    kind: str, architecture: str
) -> None:
    adapter = made(kind)
    model = attached(adapter, tiny(architecture))
    together = answers(model, 3)
    assert together == answers(model, 1)
    ids = torch.tensor([TEXTS[0]])
    for _ in range(6):  # as the forward pass has it, without a cache
        with torch.no_grad():
            ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], 1)
    assert together[0] == tiny_tokenizer().decode(ids[0, 7:], skip_special_tokens=True)
    with adapter.disabled(model):
        assert answers(model, 3) == answers(tiny(architecture), 3)


@kinds
@pytest.mark.parametrize("architecture", SWEEP)
def test_checkpointing_keeps_gradients(kind: str, architecture: str) -> None:
    found = []
    for every in (0, 1, 2):
        base = tiny(architecture)
        if every:
            checkpoint_layers(base, every_n_layers=every)
        measures.seed()
        model = made(kind).attach(base)
        found.append(measures.gradients(model))
        assert not any(hasattr(m, "_forward_pre_hooks") and m._forward_pre_hooks
                       for m in base.modules())  # fmt: skip
    for name, gradient in found[0].items():
        assert measures.any_of(gradient), name
        for checkpointed in found[1:]:
            assert measures.distance(gradient, checkpointed[name]) <= 1e-5, name


@kinds
def test_positions_of_a_left_padded_row_do_not_count_its_pads(kind: str) -> None:
    model = attached(made(kind), tiny_gpt2())
    padded = torch.tensor([[0, 0, 20, 21, 22], [1, 2, 3, 4, 5]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    with torch.no_grad():
        both = model(input_ids=padded, attention_mask=mask).logits[0, -3:]
        alone = model(input_ids=padded[:1, 2:]).logits[0]
    assert measures.distance(alone, both) <= 1e-5


@kinds
def test_only_the_kept_logits_come_and_are_the_text_s(kind: str) -> None:
    model = attached(made(kind), tiny_llama())
    ids = measures.tokens()
    whole = model(input_ids=ids).logits
    assert whole.shape[1] == ids.shape[1]
    torch.testing.assert_close(model(input_ids=ids, logits_to_keep=2).logits, whole[:, -2:])
    chosen = torch.tensor([-5, -1])
    torch.testing.assert_close(model(input_ids=ids, logits_to_keep=chosen).logits, whole[:, chosen])


def test_a_prefix_behind_pads_beyond_the_window_is_refused_and_generated_row_by_row() -> None:
    model = attached(made("prefix"), tiny("mistral"))
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    with pytest.raises(ValueError, match="window"):
        model(input_ids=torch.ones_like(mask), attention_mask=mask)
    assert answers(model, 3) == answers(model, 1)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("gpt_neo", {"num_layers": 2, "num_heads": 4, "hidden_size": 32, "window_size": 8,
                     "attention_types": [[["global", "local"], 1]]}),
        ("mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2}),
    ],
)  # fmt: skip
def test_a_prefix_behind_pads_answers_as_without_where_columns_are_counted(
    kind: str, settings: dict[str, Any]
) -> None:
    measures.seed()
    config = AutoConfig.for_model(kind, vocab_size=300, initializer_range=0.2, **settings)
    model = attached(made("prefix"), AutoModelForCausalLM.from_config(config).eval())
    texts = [[*TEXTS[0], *range(12, 20)], *TEXTS[1:]]
    asked = SamplingParams(8, temperature=0.0)
    found = decode(model, texts, asked, batch_size=3)
    for text, answer in zip(texts, found, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([text + answer.ids])).logits[0]
        assert answer.ids == logits[len(text) - 1 : -1].argmax(1).tolist()
    mask = torch.tensor([[0] * 9 + [1], [1] * 10])
    with pytest.raises(ValueError, match="pads"):
        model(input_ids=torch.ones_like(mask), attention_mask=mask)


def test_trainable_parameters_are_the_papers_counts() -> None:
    def count(kind: str, **settings: Any) -> int:
        model = attached(made(kind, **settings), tiny_llama())
        return sum(p.numel() for p in measures.learnt(model).values())

    P, D, layers, keys = 5, 32, 2, 2 * 8  # grouped: 2 key heads of 8
    assert count("prefix") == P * layers * 2 * keys
    assert count("prompt") == P * D
    hidden = 16
    assert count("prefix-projected") == (
        P * keys + (keys + 1) * hidden + (hidden + 1) * layers * 2 * keys
    )
    mlp = (D + 1) * hidden + (hidden + 1) * hidden + (hidden + 1) * D
    assert count("ptuning", encoder_hidden_size=hidden) == P * D + mlp


def test_the_encoder_s_output_can_stand_in_for_it() -> None:
    model, frozen = (attached(made("ptuning"), tiny_llama()) for _ in range(2))
    table = torch.nn.Embedding.from_pretrained(model.prompts().detach())
    frozen.encoder.forward = table.forward
    assert measures.same(measures.logits(model), measures.logits(frozen))


@pytest.mark.parametrize("kind", ["prefix", "ptuning", "prompt"])
def test_what_contradicts_the_model_is_refused(kind: str) -> None:
    stated = {"token_dim": 768, "num_layers": 12, "num_attention_heads": 12,
              "num_transformer_submodules": 1}  # fmt: skip
    faults = list(made(kind, **stated).check(tiny_llama()))
    assert [fault[0] for fault in faults] == [
        ("token_dim",), ("num_layers",), ("num_attention_heads",)
    ]  # fmt: skip
    assert "768 here, and 32 in this model" in faults[0][1]
    agreeing = {"token_dim": 32, "num_layers": 2, "num_attention_heads": 4}
    assert not list(made(kind, **agreeing).check(tiny_llama()))
    (fault,) = made(kind, num_virtual_tokens=256).check(tiny_llama())
    assert fault[0] == ("num_virtual_tokens",)


def test_text_starts_as_the_text(tmp_path: Path) -> None:
    source = ModelSource(path=str(tiny_model_folder(tmp_path)))
    settings = {"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "AB"}
    adapter = made("prompt", **settings)
    assert not list(adapter.check(BaseModel(source).empty()))
    base = BaseModel(source).load({}, varlen=False)
    model = adapter.attach(base)
    expected = base.get_input_embeddings().weight[[65, 66, 65, 66, 65]]
    assert measures.same(model.prompts(), expected)
    measures.nudge(model)
    folder = measures.saved(adapter, model, tmp_path)
    again = adapter.load(tiny_llama(), folder)  # in memory: no tokenizer, and none is needed
    assert measures.same(again.prompts(), model.prompts())
    (fault,) = adapter.check(tiny_llama())
    assert "no tokenizer" in fault[1]


def test_a_text_that_no_tokenizer_makes_tokens_of_this_model_of_is_refused(tmp_path: Path) -> None:
    settings = {"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "AB"}
    adapter = made("prompt", **settings, tokenizer_name_or_path=str(tmp_path / "none"))
    ((key, what, _),) = adapter.check(tiny_llama())
    assert key == ("tokenizer_name_or_path",)
    assert "no tokenizer for the text can be loaded" in what
    adapter = made("prompt", **settings, tokenizer_name_or_path=str(tiny_model_folder(tmp_path)))
    base = tiny_llama()
    assert not list(adapter.check(base))
    base.resize_token_embeddings(66)  # the text's ids are 65 and 66
    ((key, what, _),) = adapter.check(base)
    assert "an id of 66, and this model has 66 tokens" in what


@pytest.mark.parametrize(("kind", "settings"), [
    ("prompt", {"prompt_tuning_init": "TEXT"}),
    ("prompt", {"prompt_tuning_init_text": "hello"}),
    ("prefix", {"encoder_hidden_size": 16}),
    ("ptuning", {"encoder_dropout": 0.1}),
    ("ptuning", {"encoder_num_layers": 3}),
    ("ptuning-lstm", {"encoder_dropout": 0.1, "encoder_num_layers": 1}),
])  # fmt: skip
def test_settings_that_nothing_would_read_are_refused(kind: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        made(kind, **settings)


def test_merging_is_refused_with_the_reason() -> None:
    with pytest.raises(NotImplementedError, match="inputs, not weights"):
        made("prompt").merge(None)


def test_a_prompt_that_two_rows_share_is_computed_once_behind_a_prefix() -> None:
    base = tiny_llama()
    measures.pack_padding_free(base)
    model = attached(made("prefix"), base)
    first, second = (5, 6, 7, 8, 9), (5, 6, 7, 20, 21, 22)
    rows = [Encoded(ids, (-100, -100, -100, *ids[3:])) for ids in (first, second)]
    alone = label_nll(model, rows).per_row(2)
    together = label_nll(model, rows, [(0, 0), (0, 3)]).per_row(2)
    assert measures.distance(alone, together) <= 1e-5


def test_a_tokenizer_for_the_text_is_looked_through_first(tmp_path: Path) -> None:
    folder = tiny_model_folder(tmp_path)
    (folder / "tokenizer.json").unlink()
    os.mkfifo(folder / "tokenizer.json")  # whoever opened it would wait for ever
    settings = {"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "AB"}
    adapter = made("prompt", **settings, tokenizer_name_or_path=str(folder))
    with pytest.raises(TrustError, match="E605"):
        list(adapter.check(tiny_llama()))


@pytest.mark.parametrize("cls", [PromptTuning, PTuning])
def test_a_model_that_looks_token_ids_up_in_every_layer_takes_no_virtual_tokens(cls):
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    from llmft.modeling.tiny_configs import small_config

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(small_config(CONFIG_MAPPING["gemma4_text"]()))
    adapter = cls(cls.Config.model_validate({"method": cls.method, "num_virtual_tokens": 3}))
    found = [key for key, what, _ in adapter.check(model) if "a virtual token has none" in what]
    assert found == [("method",)]


@pytest.mark.parametrize(
    ("kind", "method", "why"),
    [
        ("cpmant", "prompt", "a 'cpmant' takes token ids only"),
        ("cpmant", "ptuning", "a 'cpmant' takes token ids only"),
        ("blt", "prompt", "a 'blt' states no hidden_size of the whole model"),
        ("blt", "prefix", "a 'blt' states no hidden_size of the whole model"),
        ("dots3_note_text", "prefix", "this model has layers of the kind indexed_attention"),
        ("moshi", "prompt", "a 'moshi' has 513 rows in its embedding"),
        ("moshi", "ptuning", "a 'moshi' has 513 rows in its embedding"),
        ("moshi", "prefix", ""),
        ("xlnet", "prompt", ""),  # it states -1 positions, and means that there is no end of them
        ("dots3_note_text", "prompt", ""),  # its layers differ in their heads, which nothing reads
    ],
)
def test_what_a_model_cannot_take_or_does_not_state_is_refused_by_name(kind, method, why):
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    from llmft.modeling.tiny_configs import small_config

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(small_config(CONFIG_MAPPING[kind]()))
    told = [what for _, what, _ in made(method).check(model)]
    assert [what[: len(why)] for what in told] == [why] * bool(why)
