"""What only a GPU can show: `pytest --gpu tests/gpu`, on a machine that has one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from llmft_adapters.dora import Dora
from llmft_adapters.lora import Lora, linear, one_walk

from llmft.api import SamplingParams
from llmft.modeling import replayed_reader, token_reader
from llmft.modeling.decoding import decode
from llmft.modeling.tiny_models import tiny_llama
from llmft.testing import measures

pytestmark = pytest.mark.gpu


def _model(cls, dtype):
    torch.manual_seed(0)
    base = tiny_llama().to("cuda", dtype).requires_grad_(False)
    model = cls(cls.Config(method=cls.method, r=4)).attach(base)
    measures.nudge(model)
    return model.eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("cls", [Lora, Dora])
def test_replayed_steps_draw_what_the_model_draws(cls, dtype, monkeypatch):
    """Rows end at different tokens; with autocast, and with the adapter moved in between."""
    model = _model(cls, dtype)
    prompts = [[5, 6, 7, 8, 9, 10], [11, 12], [11, 12], [21, 22, 23, 24], [31]] * 4
    params = SamplingParams(100, temperature=0.0, stop_token_ids=(3, 9, 17))
    made, make = [], replayed_reader.by_graph
    monkeypatch.setattr(replayed_reader, "by_graph", lambda *a: made.append(0) or make(*a))
    for _ in range(2):
        found = []
        for replays in (True, False):
            monkeypatch.setattr(token_reader, "replays", lambda _, replays=replays: replays)
            with torch.autocast("cuda", torch.bfloat16, enabled=dtype == torch.bfloat16):
                found.append(decode(model, prompts, params, batch_size=20))
        same = [a.ids == b.ids for a, b in zip(*found, strict=True)]
        assert all(same) if dtype == torch.float32 else sum(same) > 10  # ties round either way
        measures.nudge(model)
    assert len(made) >= 2


def test_doras_compiled_walks_are_right():
    """A product of two types, and a sum over rows, against float64."""
    torch.manual_seed(0)
    some, others = torch.randn(2, 4096, 2048, device="cuda").bfloat16()
    scale = torch.rand(2048, device="cuda")
    assert one_walk.compiles(some)
    plain = torch.mul(some, scale, out=torch.empty_like(some))
    assert torch.equal(linear.times(some, scale), plain)
    assert one_walk.times.made is not one_walk.times.step, "there is no compiler here"
    total, exact = linear.sum_over_rows(some, others), (some.double() * others.double()).sum(0)
    assert float((total - exact).norm() / exact.norm()) < 1e-5


RECIPE = """recipe: 1
name: same
seed: 3
model: {path: "embedded:model", dtype: bfloat16}
stages:
  - name: sft
    adapter: {method: METHOD, r: 8, lora_dropout: 0.1}
    alignment: {method: sft}
    data: {method: triviaqa, path: "embedded:trivia", limit: 256}
    train: {max_steps: 8, per_device_train_batch_size: 16, bf16: true, full_determinism: true,
            gradient_checkpointing: true, save_strategy: steps, save_steps: 4}
    evaluate: {metrics: [exact_match, loss], limit: 32}
  - name: ppo
    start_from: sft
    alignment: {method: ppo, reward: {method: length, target: 8}, response_length: 40}
    data: {method: prompts, path: "embedded:remarks", columns: {answers: aliases}, limit: 32}
    train: {max_steps: 2, per_device_train_batch_size: 16, bf16: true, full_determinism: true}
"""


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_full_determinism_gives_the_same_bits(method, tmp_path: Path):
    """SFT with dropout, then PPO with rollouts: twice, in processes of their own."""
    import subprocess
    import sys

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.replace("METHOD", method))
    found = []
    for out in ("a", "b"):
        command = [sys.executable, "-m", "llmft", "run", str(recipe), "--quiet",
                   "--output-dir", str(tmp_path / out)]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        files = sorted((tmp_path / out).rglob("adapter/adapter_model.safetensors"))
        found.append([file.read_bytes() for file in files])
    assert len(found[0]) == 2
    assert found[0] == found[1]
