"""Every adapter that ships with llmft, against the public contract."""

from __future__ import annotations

import tempfile
from functools import cache
from typing import Any

from llmft_adapters.dora import Dora
from llmft_adapters.full import Full
from llmft_adapters.lora import Lora
from llmft_adapters.peft_methods.ia3 import Ia3
from llmft_adapters.peft_methods.randlora import RandLora
from llmft_adapters.prefix import Prefix
from llmft_adapters.prompt import PromptTuning
from llmft_adapters.ptuning import PTuning
from llmft_adapters.qlora import QLora

from llmft.api.model_settings import ModelSource
from llmft.modeling.base_model import BaseModel
from llmft.testing import AdapterContract, tiny_gpt2, tiny_llama


@cache
def _folder(make: Any) -> tempfile.TemporaryDirectory[str]:
    folder = tempfile.TemporaryDirectory()
    make().save_pretrained(folder.name)
    return folder


def _in_4_bits(make: Any) -> Any:
    adapter = QLora(QLora.Config(method="qlora", bnb_4bit_compute_dtype="float32"))
    source = ModelSource(path=_folder(make).name)
    model = BaseModel(source).load(adapter.load_options(), varlen=False)
    model.config.use_cache = False
    return model.eval()


def tiny_llama_4bit() -> Any:
    return _in_4_bits(tiny_llama)


def tiny_gpt2_4bit() -> Any:
    return _in_4_bits(tiny_gpt2)


class TestLora(AdapterContract):
    method_class = Lora
    configs = (
        {"r": 4},
        {"r": 2, "target_modules": ["?_*"], "layers_to_transform": [1], "loraplus_lr_ratio": 4.0},
        {"r": 2, "bias": "all", "use_rslora": True},
        {"r": 2, "bias": "lora_only", "target_modules": ["?_*"]},
        {"r": 2, "modules_to_save": ["lm_head"], "init_lora_weights": "gaussian"},
        {"r": 2, "init_lora_weights": "pissa_niter_4", "bias": "lora_only", "lora_dropout": 0.1},
        {"r": 2, "init_lora_weights": "olora", "rank_pattern": {"?_*": 3}},
        {"r": 2, "trainable_token_indices": [71, 252]},
        {"r": 2, "target_modules": ["all-linear", "embed_tokens", "lm_head"]},
        {"r": 2, "target_modules": ["lm_head"], "lora_dropout": 0.1, "use_rslora": True},
        {"r": 2, "target_modules": ["lm_head", "v_proj"], "init_lora_weights": "olora"},
    )


class TestDora(AdapterContract):
    method_class = Dora
    configs = ({"r": 4}, {"r": 2, "lora_dropout": 0.1, "bias": "all"},
               {"r": 2, "trainable_token_indices": [252, 71]},
               {"r": 2, "target_modules": ["q_proj", "embed_tokens", "lm_head"]})  # fmt: skip


class TestFull(AdapterContract):
    method_class = Full
    configs = (
        {},
        {"freeze_trainable_layers": 1, "max_shard_size": "20KB"},
        {"freeze_parameters": ["*.0.*"]},
    )


class _In4Bits(AdapterContract):
    """On a quantised base, which cannot go to the meta device; `check` sees the plain one there."""

    models = (tiny_llama_4bit, tiny_gpt2_4bit)

    def _faults(self, settings: Any, base: Any) -> list[Any]:
        return super()._faults(settings, tiny_llama if base is tiny_llama_4bit else tiny_gpt2)


class TestDoraIn4Bits(_In4Bits):
    method_class = Dora
    configs = ({"r": 4},)
    test_merging_gives_a_plain_model_of_the_same_answers = None  # type: ignore[assignment]


class TestPrefixIn4Bits(_In4Bits):
    method_class = Prefix
    configs = ({"num_virtual_tokens": 4},)


class _BridgedIn4Bits(_In4Bits):
    test_merging_gives_a_plain_model_of_the_same_answers = None  # type: ignore[assignment]


class TestIa3In4Bits(_BridgedIn4Bits):
    method_class = Ia3
    configs = ({},)


class TestRandLoraIn4Bits(_BridgedIn4Bits):
    method_class = RandLora
    configs = ({"r": 4, "save_projection": False},)


class TestQLora(_In4Bits):
    method_class = QLora
    configs = (
        {"r": 4},
        {"r": 2, "bnb_4bit_quant_type": "fp4"},
        {"r": 2, "trainable_token_indices": [71, 252]},
        {"r": 2, "target_modules": ["all-linear", "embed_tokens", "lm_head"]},
    )


class TestPrefix(AdapterContract):
    method_class = Prefix
    configs = ({"num_virtual_tokens": 4},)


class TestPrefixWithProjection(AdapterContract):
    method_class = Prefix
    configs = ({"num_virtual_tokens": 4, "prefix_projection": True, "encoder_hidden_size": 16},)


class TestPTuning(AdapterContract):
    method_class = PTuning
    configs = (
        {"num_virtual_tokens": 4},
        {"num_virtual_tokens": 4, "encoder_reparameterization_type": "LSTM"},
    )


class TestPromptTuning(AdapterContract):
    method_class = PromptTuning
    configs = (
        {"num_virtual_tokens": 4},
        {"num_virtual_tokens": 4, "prompt_tuning_init": "SAMPLE_VOCAB"},
    )
