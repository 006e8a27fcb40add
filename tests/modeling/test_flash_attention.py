"""FlashAttention by name, with a stand-in for its package: what it is handed, and gives back."""

from __future__ import annotations

import importlib.machinery
import json
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from llmft.api import Encoded
from llmft.api.errors import LlmftError
from llmft.api.model_settings import ModelSource
from llmft.modeling import attention, flash_attention
from llmft.modeling.base_model import BaseModel, dense_attention
from llmft.modeling.decoding import dense_attention as densely
from llmft.modeling.forward import label_nll
from llmft.modeling.tiny_models import tiny_llama
from llmft.recipes.load import load_recipe
from llmft.registry.registry import Registry
from llmft.smoke import smoke

NAMES = sorted(flash_attention.MODULES)


class Package(ModuleType):
    """A package whose function computes each segment alone; it keeps what it is given."""

    def __init__(self, name: str, wrong: bool = False) -> None:
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)
        self.calls: list[SimpleNamespace] = []
        self.wrong = wrong

    def flash_attn_varlen_func(
        self, q: Any, k: Any, v: Any, cu_seqlens_q: Any, cu_seqlens_k: Any, max_seqlen_q: int,
        max_seqlen_k: int, dropout_p: float = 0.0, softmax_scale: Any = None, causal: bool = False,
        window_size: tuple[int, int] = (-1, -1), deterministic: bool = False,
    ) -> torch.Tensor:  # fmt: skip
        self.calls.append(SimpleNamespace(**locals()))
        for bounds, tensor in ((cu_seqlens_q, q), (cu_seqlens_k, k)):
            assert bounds.dtype == torch.int32
            assert bounds.device == tensor.device
            assert int(bounds[-1]) == len(tensor)
        assert isinstance(max_seqlen_q, int)
        assert isinstance(max_seqlen_k, int)
        out = []
        for i in range(len(cu_seqlens_q) - 1):
            (query, key, value) = (
                t[cu[i] : cu[i + 1]].transpose(0, 1)
                for t, cu in ((q, cu_seqlens_q), (k, cu_seqlens_k), (v, cu_seqlens_k))
            )
            far = torch.arange(key.shape[1])[-query.shape[1] :, None] - torch.arange(key.shape[1])
            seen = torch.ones_like(far, dtype=torch.bool)
            if causal and not self.wrong:
                seen &= far >= 0
            if window_size[0] >= 0:
                seen &= far <= window_size[0]
            out.append(F.scaled_dot_product_attention(
                query, key, value, attn_mask=seen, scale=softmax_scale, enable_gqa=True
            ).transpose(0, 1))  # fmt: skip
        return torch.cat(out)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what puts a stand-in for a package on a machine that seems to have a GPU."""

    def install(name: str, **how: Any) -> Package:
        package = Package(flash_attention.MODULES[name], **how)
        monkeypatch.setitem(sys.modules, package.__name__, package)
        monkeypatch.setattr(flash_attention, "on_gpu", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
        for kept in (flash_attention._function, flash_attention._apart):
            kept.cache_clear()
        return package

    yield install
    flash_attention._function.cache_clear()
    flash_attention._apart.cache_clear()


ROWS = [Encoded(tuple(range(1, n)), (-100, *range(2, n))) for n in (7, 12, 3, 9)]


@pytest.mark.parametrize("name", NAMES)
def test_losses_and_gradients_are_those_of_each_row_alone(
    name: str, installed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = installed(name)
    monkeypatch.setattr(flash_attention, "takes", lambda query: True)  # in float32, to compare
    model = tiny_llama().requires_grad_(True)
    alone = torch.stack([label_nll(model, [row]).nll_N.sum() for row in ROWS])
    wanted = torch.autograd.grad(alone.sum(), list(model.parameters()))
    assert not package.calls
    attention.register()
    model.set_attn_implementation(attention.NAMES[name])
    assert attention.padding_free(model)
    losses = label_nll(model, ROWS).per_row(4)
    found = torch.autograd.grad(losses.sum(), list(model.parameters()))
    torch.testing.assert_close(losses, alone)
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    first, second = package.calls  # a call for each layer, and nothing but that
    assert first.cu_seqlens_q.tolist() == first.cu_seqlens_k.tolist() == [0, 6, 17, 19, 27]
    assert (first.max_seqlen_q, first.max_seqlen_k) == (11, 11)
    assert first.cu_seqlens_q is second.cu_seqlens_q, "made once for all layers"
    assert first.causal
    assert not first.deterministic


def test_learnt_keys_shared_prompts_and_windows_need_no_mask(
    installed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = installed("flash_attention_2")
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, heads, t, 8) for heads, t in ((4, 20), (2, 22), (2, 22)))
    given = {"cu_seq_lens_q": torch.tensor([0, 5, 12, 13, 20]), "sliding_window": 4,
             "shared_prefix": torch.tensor([(0, 0), (0, 3), (0, 5), (5, 4)])}  # fmt: skip
    wanted, _ = attention.varlen_attention(None, q, k, v, None, **given)
    monkeypatch.setattr(flash_attention, "takes", lambda query: True)
    found, _ = attention.varlen_attention(None, q, k, v, None, kernel="flash_attention_2", **given)
    torch.testing.assert_close(found, wanted)
    (call,) = package.calls
    assert call.cu_seqlens_k.tolist() == [
        0,
        7,
        19,
        27,
        40,
    ]  # each with two learnt keys, and its own
    assert call.window_size == (3, 0)


def test_under_autocast_it_gets_16_bits_and_outside_torch_computes_float32(installed: Any) -> None:
    package = installed("flash_attention_2")
    model = tiny_llama()
    attention.register()
    model.set_attn_implementation(attention.NAMES["flash_attention_2"])
    label_nll(model, ROWS)
    assert not package.calls
    with torch.autocast("cpu", torch.bfloat16):
        label_nll(model, ROWS)
    kinds = {t.dtype for call in package.calls for t in (call.q, call.k, call.v)}
    assert kinds == {torch.bfloat16}
    assert len(package.calls) == 2


def test_the_same_bits_are_asked_for_where_the_recipe_does(installed: Any) -> None:
    package = installed("flash_attention_3")
    tensors = [torch.randn(1, heads, 6, 8, dtype=torch.bfloat16) for heads in (4, 2, 2)]
    try:
        torch.use_deterministic_algorithms(True)
        attention.varlen_attention(
            None, *tensors, None, cu_seq_lens_q=torch.tensor([0, 2, 6]), kernel="flash_attention_3"
        )
    finally:
        torch.use_deterministic_algorithms(False)
    assert package.calls[0].deterministic


def test_answers_are_drawn_by_torchs_attention_and_then_the_name_is_back() -> None:
    model = tiny_llama()
    attention.register()
    model.set_attn_implementation(attention.NAMES["flash_attention_2"])
    setattr(model, attention.DENSE, "sdpa")
    with densely(model):
        assert model.config._attn_implementation == "sdpa"
    assert model.config._attn_implementation == attention.NAMES["flash_attention_2"]
    source = ModelSource(path="x", attn_implementation="flash_attention_3")
    assert dense_attention(source, model.config) == "sdpa"


@pytest.mark.parametrize("name", NAMES)
def test_what_a_machine_lacks_is_told(name: str, installed: Any, monkeypatch: Any) -> None:
    def lacks() -> str:
        found = flash_attention.missing(name)
        return found[0] if found else ""

    package = installed(name)
    assert not lacks()
    assert package.calls, "a small case is computed by it"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
    assert "8.0 or above, and this GPU has 7.5" in lacks()
    installed(name, wrong=True)
    assert "does not give torch's numbers here" in lacks()
    installed(name)
    monkeypatch.setattr(flash_attention, "import_module", lambda _: SimpleNamespace())
    assert "cannot be loaded" in lacks()
    monkeypatch.setattr(flash_attention, "find_spec", lambda _: None)
    assert "needs the package flash-attn" in lacks()
    monkeypatch.setattr(flash_attention, "on_gpu", lambda: False)
    assert "this machine has none" in lacks()


def test_a_result_is_scored_by_torch_where_the_package_is_not(
    model_folder: Any, installed: Any, monkeypatch: Any
) -> None:
    source = ModelSource(
        path=str(model_folder), attn_implementation="flash_attention_2", dtype="bfloat16"
    )
    monkeypatch.setattr(flash_attention, "on_gpu", lambda: False)
    there = BaseModel(source).load({}, varlen=True)
    assert there.config._attn_implementation == attention.NAME
    installed("flash_attention_2")
    there = BaseModel(source).load({}, varlen=True)
    assert there.config._attn_implementation == attention.NAMES["flash_attention_2"]
    assert BaseModel(source).load({}, varlen=False).config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("name", "config", "what"),
    [
        ("flash_attention_2", {"head_dim": 320}, "these have 320"),
        ("flash_attention_2", {"head_dim": 20}, "these have 20"),
        ("flash_attention_3", {"attention_dropout": 0.1}, "has no dropout"),
        ("flash_attention_2", {"attention_dropout": 0.1}, ""),
    ],
)
def test_what_no_machine_computes_is_told(name: str, config: Any, what: str) -> None:
    made = tiny_llama().config
    for key, value in config.items():
        setattr(made, key, value)
    assert what in flash_attention.misfit(name, made)
    assert bool(flash_attention.misfit(name, made)) == bool(what)


# --- in a run


@pytest.fixture
def stage(tmp_path: Any) -> dict[str, Any]:
    rows = [{"prompt": f"say {n}" + " so" * (n % 7), "completion": " yes" * (1 + n % 5)}
            for n in range(24)]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "name": "s", "adapter": {"method": "lora", "r": 4}, "alignment": {"method": "sft"},
        "data": {"method": "jsonl", "path": str(tmp_path / "rows.jsonl")},
        "train": {"max_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 0.02,
                  "logging_steps": 1, "packing": True, "max_length": 96},
    }  # fmt: skip


@pytest.mark.parametrize("adapter", [{"method": "lora", "r": 4},
                                     {"method": "prefix", "num_virtual_tokens": 3}])  # fmt: skip
def test_packed_rows_go_through_the_package(
    run: Any, stage: Any, adapter: Any, installed: Any, model_folder: Any
) -> None:
    def losses(**source: Any) -> list[float]:
        model = {"path": str(model_folder), "dtype": "bfloat16", **source}
        folder = run(stage, model=model).folder / "stages" / "s"
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        return [one["loss"] for one in lines if one["phase"] == "train"]

    stage["adapter"] = adapter
    plain = losses()
    package = installed("flash_attention_2")
    assert flash_attention.missing("flash_attention_2") is None
    package.calls.clear()
    found = losses(attn_implementation="flash_attention_2")
    assert found == pytest.approx(plain, rel=0.01)
    assert len(package.calls) == 3 * 2  # three steps of one pass, two layers
    assert all(len(call.cu_seqlens_q) > 5 for call in package.calls), "several rows in each bin"
    if adapter["method"] == "prefix":
        assert {int(call.cu_seqlens_k[1] - call.cu_seqlens_q[1]) for call in package.calls} == {3}


def test_a_run_that_it_would_compute_nothing_of_is_refused(
    run: Any, stage: Any, installed: Any, model_folder: Any
) -> None:
    installed("flash_attention_2")
    source = {"path": str(model_folder), "attn_implementation": "flash_attention_2"}
    with pytest.raises(LlmftError, match="computes in 16 bits, and 's' in float32"):
        run(stage, model=source)


@pytest.mark.parametrize("name", NAMES)
def test_without_a_gpu_a_run_is_refused_and_a_rehearsal_takes_auto(
    name: str, run: Any, stage: Any, model_folder: Any, monkeypatch: Any, tmp_path: Any
) -> None:
    monkeypatch.setattr(flash_attention, "on_gpu", lambda: False)
    monkeypatch.setattr(smoke, "_has_gpu", lambda: False)
    source = {"path": str(model_folder), "dtype": "bfloat16", "attn_implementation": name}
    with pytest.raises(LlmftError, match=f"{name} runs on a GPU, and this machine has none"):
        run(stage, model=source)
    recipe = load_recipe(tmp_path / "recipe.yaml", Registry.discover()).recipe
    changes = dict(smoke._of_the_recipe(recipe, tmp_path, own_tokenizer=True))
    assert changes["model.attn_implementation"] == "auto"


@pytest.mark.parametrize(
    ("name", "why"),
    [("flex_attention", "no gradients with it on a CPU"), ("kernels-community/x", "from the hub"),
     ("flash_attention_4", "nothing here has been held to it")],
)  # fmt: skip
def test_attention_that_is_not_offered_is_refused_with_its_reason(name: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        ModelSource(path="x", attn_implementation=name)
