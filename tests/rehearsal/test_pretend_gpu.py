"""llmft's own runs on a GPU that is not there: no device is mixed, and waits are counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from llmft.engine import adapter_trial
from llmft.modeling import levers, recompute
from llmft.system import machine
from tests.extended import extended

from .pretend_gpu import CUDA, REASON, TRIED, PretendGpu, known_to_accelerate

REMEMBERED = levers.remembered
pytestmark = pytest.mark.skipif(not TRIED, reason=REASON)

ADAPTERS = {
    "lora": "{method: lora, r: 4}",
    "dora": "{method: dora, r: 4}",
    "dropped": "{method: dora, r: 4, lora_dropout: 0.1}",
    "prefix": "{method: prefix, num_virtual_tokens: 4}",
    "prompt": "{method: prompt, num_virtual_tokens: 4}",
    "ptuning": "{method: ptuning, num_virtual_tokens: 4}",
}  # fmt: skip
ALIGNMENTS = {
    "sft": '{method: jsonl, path: "embedded:remarks", limit: 8,'
    ' columns: {completion: " {answer}. {said}"}}',
    "dpo": '{method: preference, path: "embedded:remarks", limit: 8, columns:'
    ' {chosen: " {answer}. {welcome}", rejected: " {answer}. {unwelcome}"}}',
    "ppo": '{method: prompts, path: "embedded:remarks", columns: {answers: aliases}, limit: 8}',
}
GROUPS = ", rewards: [{method: length, target: 8}], num_generations: 2, max_completion_length: "
OWN = {"ppo": ", reward: {method: length, target: 8}, num_ppo_epochs: 1, response_length: "}
OWN |= {"grpo": GROUPS, "rloo": GROUPS}
OWN |= {"gkd": ', teacher: {path: "MODEL"}, lmbda: 1, seq_kd: true, max_new_tokens: '}


def recipe(
    model: Path, out: Path, adapter: str, alignment: str, more: str = "", new: int = 4
) -> str:
    own = f"{OWN[alignment]}{new}".replace("MODEL", str(model)) if alignment in OWN else ""
    data = ALIGNMENTS["ppo" if own else "sft" if alignment == "sft" else "dpo"]
    return f"""recipe: 1
name: r
output_dir: {out}
model: {{path: "{model}"}}
stages:
  - name: s
    adapter: {ADAPTERS[adapter]}
    alignment: {{method: {alignment}{own}}}
    data: {data}
    train: {{max_steps: 2, per_device_train_batch_size: 2, save_strategy: epoch{more}}}
trackers: [{{method: jsonl}}]
"""


def run(text: str, folder: Path):
    from llmft.engine.session import run_recipe
    from llmft.recipes.load import load_recipe
    from llmft.registry.registry import Registry

    file = folder / "r.yaml"
    file.write_text(text)
    registry = Registry.discover()
    return run_recipe(load_recipe(file, registry)).stages["s"].metrics["train_loss"]


def run_on_gpu(
    text: str, folder: Path, *, tried: bool = False
) -> tuple[float, Counter[tuple[str, str]]]:
    """Return the loss, and the waits of the second step.

    tried: the architecture and the adapter are tried on the device, too, which takes longer than
    the run; else what was found of them on the CPU is taken.
    """
    from llmft.training import loop

    seen: list[Counter[tuple[str, str]]] = []
    plain = loop.train

    def train(*args, on_step, **kwargs):
        return plain(
            *args, on_step=lambda *a: (seen.append(gpu.waits.copy()), on_step(*a)), **kwargs
        )

    with pytest.MonkeyPatch.context() as patch, simulated(tried=tried) as gpu:
        patch.setattr(loop, "train", train)
        loss = run(text, folder)
    return loss, seen[1] - seen[0]


@contextmanager
def simulated(*, tried: bool = False, numbers: bool = True) -> Iterator[PretendGpu]:
    """Let the block's runs train on the device that is not there."""
    gpu = PretendGpu(numbers=numbers)
    with pytest.MonkeyPatch.context() as patch, gpu, known_to_accelerate():
        if not tried:
            for module in (levers, adapter_trial):
                patch.setattr(module, "remembered", remembered_on_the_cpu)
        yield gpu


def remembered_on_the_cpu(config, asked, find):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "device", lambda: "cpu")
        return REMEMBERED(config, asked, find)


def tiny(folder: Path, layers: int = 2) -> Path:
    from llmft.modeling.tiny_models import tiny_llama, tiny_model_folder

    model = tiny_llama()
    if layers != 2:
        model.config.num_hidden_layers = layers
        torch.manual_seed(0)
        model = type(model)(model.config)
    return tiny_model_folder(folder, model)


@pytest.mark.parametrize(
    ("adapter", "alignment", "more"),
    extended(
        [("lora", "sft", ""), ("lora", "sft", ", gradient_checkpointing: true"),
         ("dora", "dpo", ""), ("prefix", "orpo", ""), ("ptuning", "reward", ""),
         ("lora", "ppo", ""), ("prompt", "ppo", "")],
        plain=[("lora", "sft", "")],
    ),
)  # fmt: skip
def test_a_run_is_the_same_on_the_device(tmp_path, adapter, alignment, more):
    model = tiny(tmp_path)
    text = recipe(model, tmp_path / "out", adapter, alignment, more)
    plain = run(text, tmp_path)
    loss, _ = run_on_gpu(text, tmp_path)
    assert loss == pytest.approx(plain, rel=2e-5, abs=2e-6)


@pytest.mark.extended
def test_an_architecture_and_an_adapter_can_be_tried_on_the_device(tmp_path, monkeypatch):
    monkeypatch.setattr(levers, "_known", {})
    text = recipe(tiny(tmp_path), tmp_path / "out", "lora", "sft")
    loss, _ = run_on_gpu(text, tmp_path, tried=True)
    assert len(levers._known) == 2
    assert loss == pytest.approx(run(text, tmp_path), rel=2e-5, abs=2e-6)


@pytest.mark.parametrize(
    ("adapter", "alignment"),
    extended([("lora", "sft"), ("dropped", "dpo"), ("prompt", "ppo")], [("lora", "sft")]),
)
@pytest.mark.extended
def test_autocast_mixes_no_types(tmp_path, adapter, alignment):
    text = recipe(tiny(tmp_path), tmp_path / "out", adapter, alignment, ", bf16: true")
    loss, _ = run_on_gpu(text.replace('model"}', 'model", dtype: bfloat16}'), tmp_path)
    assert loss == loss


WAITS = {
    **dict.fromkeys(["sft", "dpo", "orpo", "reward", "kto", "cpo"], 1),
    **{"ppo": 2, "grpo": 2, "rloo": 3, "gkd": 1},
}
"""What the host waits for in a step with one update: the loss, its metrics and the gradient's norm,
read together; and of sampled answers what they were judged by, and their entropy."""
TOKEN_WAITS = 1  # the tokens, their likelihoods and whether they end, read together
NEW = 4


@pytest.mark.parametrize("alignment", extended(WAITS, ["sft", "dpo", "grpo"]))
def test_a_step_waits_for_what_it_reads_once(tmp_path, alignment):
    waits = run_on_gpu(recipe(tiny(tmp_path), tmp_path / "out", "lora", alignment), tmp_path)[1]
    drawn = NEW * TOKEN_WAITS if alignment in OWN else 0
    assert waits.total() == WAITS[alignment] + drawn, waits


@pytest.mark.extended
def test_layers_inputs_in_the_cpus_memory_change_no_bit_and_are_not_waited_for(
    tmp_path, monkeypatch
):
    plain = ", gradient_checkpointing: true, bf16: true"
    away, put, found = recompute.to_host, [], []

    def to_host(tensor):
        assert tensor.device == CUDA
        put.append(tensor.shape)
        return away(tensor)

    monkeypatch.setattr(recompute, "to_host", to_host)
    for more, calls in ((plain, 0), (f"{plain}, activation_offloading: true", 2 * 2)):
        text = recipe(tiny(tmp_path), tmp_path / "out", "dropped", "sft", more)
        loss, waits = run_on_gpu(text, tmp_path)
        assert len(put) == calls, "two layers in two steps"
        adapters = sorted((tmp_path / "out").rglob("adapter_model.safetensors"))
        found.append((loss, waits.total(), adapters[-1].read_bytes()))
    assert found[0] == found[1]


@pytest.mark.extended
@pytest.mark.parametrize("adapter", ["lora", "dora", "prefix"])
def test_waits_do_not_grow_with_layers(tmp_path, adapter):
    text = recipe(tiny(tmp_path, 4), tmp_path / "out", adapter, "ppo", new=8)
    waits = run_on_gpu(text, tmp_path)[1]
    assert waits.total() == WAITS["ppo"] + 8 * TOKEN_WAITS, waits


@pytest.mark.extended
def test_planted_faults_are_caught(tmp_path, monkeypatch):
    from llmft_adapters.lora import layer as lora_layer

    plain = lora_layer.LoraForward.__call__
    text = recipe(tiny(tmp_path), tmp_path / "out", "lora", "sft")

    def reads(self, x):
        float(x.sum())
        return plain(self, x)

    monkeypatch.setattr(lora_layer.LoraForward, "__call__", reads)
    assert run_on_gpu(text, tmp_path)[1].total() == WAITS["sft"] + 14  # one for each layer's call

    def mixes(self, x):
        return plain(self, x) + torch.zeros(x.shape[-2], 1)

    monkeypatch.setattr(lora_layer.LoraForward, "__call__", mixes)
    with pytest.raises(Exception, match="device"):
        run_on_gpu(text, tmp_path)
