"""FLOPs by an independent count, and the time on a named GPU by hand."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from llmft.api.errors import RecipeError
from llmft.cli.main import main
from llmft.modeling.tiny_models import tiny_tokenizer
from llmft.planning.planner import plan_recipe
from llmft.planning.roofline import (
    HOST_SECONDS,
    HOST_TOKEN_SECONDS,
    LOAD_BANDWIDTH,
    REACHED,
    SHORTEST_ANSWERS,
    STREAMED,
    card_here,
    named_card,
    on_card,
)


def test_flops_are_those_that_torch_counts_on_the_real_model(recipe, loaded):
    """PEFT's own forward pass on rows without padding, its attention by matrix products."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    train = recipe["stages"][0]["train"]
    train |= {"per_device_train_batch_size": 1, "max_steps": 1}
    stage = plan_recipe(loaded(recipe)).stages[0]
    tokens = stage.computed.tokens / stage.computed.items
    base = AutoModelForCausalLM.from_pretrained(
        recipe["model"]["path"], attn_implementation="eager"
    )
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear"))
    ids = torch.ones(1, round(tokens), dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids).loss.backward()
    found = stage.computed.train_flops / stage.computed.tokens
    # Ours knows which tokens have a label, and which gradients nobody asks for.
    assert 0.6 < found / (counter.get_total_flops() / round(tokens)) < 1.05


@pytest.fixture
def large(recipe, tmp_path):
    """A recipe for Llama 3 8B's shape, of which there is a config and no weight."""
    from transformers import LlamaConfig

    folder = tmp_path / "large"
    LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=2, num_attention_heads=32,
        num_key_value_heads=8, vocab_size=32_000, architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    ).save_pretrained(folder)  # fmt: skip
    tiny_tokenizer().save_pretrained(folder)
    recipe["model"] = {"path": str(folder), "dtype": "bfloat16"}
    return recipe


def test_frozen_layers_cost_four_flops_a_parameter_and_token(large, loaded, tmp_path):
    rows = tmp_path / "texts.jsonl"  # every token is trained on, in the last layer, too
    rows.write_text("".join(json.dumps({"text": f"text {n} " * 9}) + "\n" for n in range(8)))
    data = {"method": "jsonl", "path": str(rows), "columns": {"text": "text"}}
    large["stages"][0]["data"] = data
    stage = plan_recipe(loaded(large), in_ram=False).stages[0]
    attention, mlp = 4096 * 4096 * 2 + 4096 * 1024 * 2, 3 * 4096 * 14336
    head = 32_000 * 4096
    # The embeddings are frozen: nobody asks for gradients of the first layer's q, k and v inputs.
    unasked = 4096 * 4096 + 4096 * 1024 * 2
    by_hand = 4 * (2 * (attention + mlp) + head) - 2 * unasked
    found = stage.computed.train_flops / stage.computed.tokens
    assert found == pytest.approx(by_hand, rel=0.05)


def time_of(loaded, recipe, card):
    plan = plan_recipe(loaded(recipe), in_ram=False)
    return plan.stages[0], on_card(plan, named_card(card)).stages[0]


def test_small_passes_are_limited_by_the_host_and_large_ones_by_the_chip(large, loaded):
    large["stages"][0]["train"] |= {"per_device_train_batch_size": 1, "num_train_epochs": 1}
    stage, time = time_of(loaded, large, "H100")
    assert stage.counts.steps == 40
    host = [seconds * 2 * 40 for seconds in HOST_SECONDS]  # two layers, forty passes
    training = time.parts["training"]
    assert (training.low, training.likely, training.high) == pytest.approx(tuple(host))
    # The same chip, a thousandth as fast: then its products are the limit.
    slow = SimpleNamespace(name="slow", memory=80, flops=1e12, bandwidth=1e15)
    plan = plan_recipe(loaded(large), in_ram=False)
    training = on_card(plan, slow).stages[0].parts["training"]
    whole = stage.computed.train_flops / stage.computed.tokens * stage.counts.tokens
    worst, likely, best = (whole / (share * 1e12) for share in REACHED)
    assert (training.low, training.likely, training.high) == pytest.approx((best, likely, worst))


def test_answers_read_the_weights_for_every_token(large, loaded):
    large["stages"][0]["evaluate"] = {
        "metrics": ["exact_match"], "holdout": 8, "max_new_tokens": 10,
    }  # fmt: skip
    large["stages"][0]["train"] |= {"per_device_eval_batch_size": 4}
    plan = plan_recipe(loaded(large), in_ram=False)
    stage = plan.stages[0]
    card = SimpleNamespace(name="narrow", memory=80, flops=1e18, bandwidth=1e9)
    found = on_card(plan, card).stages[0].parts["scoring"]
    weights = stage.peaks[0].by_kind["weights"]
    cache = max(peak.by_kind.get("KV cache", 0) for peak in stage.peaks)
    tokens = 2 * 2 * 10  # before and after, two batches, ten tokens
    likely = (weights + cache / 2) * tokens / (STREAMED[1] * 1e9)
    assert found.likely == pytest.approx(likely)
    assert found.low == pytest.approx(likely * STREAMED[1] / STREAMED[2] * SHORTEST_ANSWERS)
    fast = SimpleNamespace(name="wide", memory=80, flops=1e18, bandwidth=1e18)
    found = on_card(plan, fast).stages[0].parts["scoring"]
    assert found.likely == pytest.approx(HOST_TOKEN_SECONDS[1] * 2 * tokens)
    assert found.high == pytest.approx(HOST_TOKEN_SECONDS[2] * 2 * tokens)
    assert on_card(plan, fast).stages[0].parts["set-up"].likely == weights / LOAD_BANDWIDTH[1]


def test_a_card_is_known_by_its_usual_names():
    assert named_card("H100").flops == 989e12
    assert named_card("rtx-4090").memory == named_card("4090").memory == 24
    assert named_card("a100 40gb").memory == 40
    assert named_card("A100-80GB").memory == 80
    assert named_card("24GB") is None
    with pytest.raises(RecipeError, match="not one whose speed is known"):
        named_card("X9000")


@pytest.mark.parametrize(
    ("device", "card"),
    [
        ("NVIDIA H200", "H200"), ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA A100-SXM4-40GB", "A100 40GB"), ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"), ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("NVIDIA L40S", "L40S"), ("NVIDIA L40", None), ("Tesla T4", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None), ("NVIDIA A100 MIG 1g.10gb", None),
    ],
)  # fmt: skip
def test_a_card_is_known_by_what_its_driver_calls_it(device, card):
    found = card_here(device)
    assert (found.name if found else None) == card


def test_on_a_machine_with_a_known_card_the_plan_has_its_time(
    recipe, tmp_path, capsys, monkeypatch
):
    from llmft.planning import fitting

    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    here = fitting.Memory("NVIDIA H200", 141 * fitting.GIB, 0, in_ram=False)
    monkeypatch.setattr(fitting, "found_memory", lambda: here)
    assert main(["plan", str(path)]) == 0
    assert "estimated by the roofline of H200" in capsys.readouterr().out


def test_plan_says_that_a_named_card_s_time_is_estimated(recipe, tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    assert main(["plan", str(path), "--gpu", "4090"]) == 0
    told = capsys.readouterr().out
    assert "estimated by the roofline of RTX 4090" in told
    assert "measured on H100 and H200 only" in told
    assert "RTX 4090 has room for" in told
    assert main(["plan", str(path), "--gpu", "24GB"]) == 0
    assert "name the card for an estimate" in capsys.readouterr().out


def test_padding_takes_time_where_rows_are_padded(large, loaded):
    """The same FLOPs for each column; of these there are as many as the epoch's passes have."""
    large["stages"][0]["train"] |= {"per_device_train_batch_size": 4, "num_train_epochs": 1}
    slow = SimpleNamespace(name="slow", memory=80, flops=1e12, bandwidth=1e15)

    def seconds(**model):
        large["model"] |= model
        plan = plan_recipe(loaded(large), in_ram=False)
        counts = plan.stages[0].counts
        return on_card(plan, slow).stages[0].parts["training"].likely, counts.padding

    padded, padding = seconds(attn_implementation="eager")
    assert padding > 1.2
    large["stages"][0]["train"]["train_sampling_strategy"] = "group_by_length"
    grouped, less = seconds()
    assert less < padding
    assert grouped / padded == pytest.approx(less / padding, rel=0.05)
