"""What a model folder can do: a template that never ends, sizes that nobody has, kernels, code."""

from __future__ import annotations

import json
import time

import pytest

from llmft.api.errors import DataError, EnvironmentFault, TrustError
from llmft.api.model_settings import ModelSource
from llmft.data import bounded_rendering
from llmft.data.encoding import Encoder
from llmft.modeling.base_model import BaseModel
from llmft.modeling.model_size import least_parameters
from llmft.modeling.tiny_models import tiny_llama, tiny_model_folder, tiny_tokenizer

TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
HUGE = (
    "{% set ns = namespace(x='aaaaaaaaaa') %}"
    "{% for n in range(40) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}"
)


def with_template(text: str):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = text
    return tokenizer


def test_s8_a_template_that_never_ends_is_refused_in_time(monkeypatch):
    monkeypatch.setattr(bounded_rendering, "SECONDS", 0.5)
    bounded_rendering._renderer.cache_clear()
    started = time.monotonic()
    with pytest.raises(TrustError, match=r"E604.*did not end within 0.5 seconds") as caught:
        Encoder(with_template(ENDLESS), 64).render(TALK, answer_next=False)
    assert time.monotonic() - started < 20
    assert caught.value.exit_code == 8
    bounded_rendering._renderer.cache_clear()


def test_s8_a_template_that_eats_memory_is_refused():
    with pytest.raises(TrustError, match=r"E604.*memory|E604.*MB"):
        Encoder(with_template(HUGE), 64).render(TALK, answer_next=False)


def test_s8_a_template_is_kept_from_python():
    escape = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(DataError, match="E108"):
        Encoder(with_template(escape), 64).render(TALK, answer_next=False)


def folder_with(tmp_path, **config):
    folder = tiny_model_folder(tmp_path)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


@pytest.mark.parametrize(("config", "said"), [
    ({"num_hidden_layers": 10**9}, "has 1,000,000,000 layers"),
    ({"vocab_size": 10**12}, "needs 128,000 GB at least"),
    ({"intermediate_size": 10**13}, "GB at least"),
])  # fmt: skip
def test_s9_absurd_sizes_are_refused_before_anything_is_allocated(tmp_path, config, said):
    source = ModelSource(path=str(folder_with(tmp_path, **config)))
    started = time.monotonic()
    with pytest.raises(EnvironmentFault, match=rf"E205.*{said}"):
        BaseModel(source).load({}, varlen=False)
    assert time.monotonic() - started < 2


def test_s9_a_count_of_layers_is_refused_where_nothing_is_allocated_too(tmp_path):
    source = ModelSource(path=str(folder_with(tmp_path, num_hidden_layers=10**9)))
    with pytest.raises(EnvironmentFault, match="E205"):
        BaseModel(source).empty()


def test_s9_no_model_has_fewer_parameters_than_its_sizes_say():
    from llmft.modeling.tiny_models import tiny_gpt2

    for model in (tiny_llama(), tiny_gpt2()):
        real = sum(p.numel() for p in model.parameters())
        assert 0.2 * real < least_parameters(model.config) <= real


def test_s5_a_kernel_from_the_hub_cannot_be_named():
    with pytest.raises(ValueError, match="attn_implementation"):
        ModelSource(path="x", attn_implementation="org/kernel")


def test_s5_no_setting_lets_a_model_run_its_own_code():
    """There is no `trust_remote_code`, in a recipe or on the command line."""
    with pytest.raises(ValueError, match="trust_remote_code"):
        ModelSource(path="x", trust_remote_code=True)
