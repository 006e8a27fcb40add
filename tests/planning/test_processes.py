"""A plan of several GPUs: what each holds, which passes it takes, and the time to sum gradients."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from llmft.api import Encoded
from llmft.api.errors import RecipeError
from llmft.api.train_settings import TrainSettings
from llmft.cli.commands import plan
from llmft.cli.main import main
from llmft.planning.batch_choice import choose
from llmft.planning.fitting import named_memory
from llmft.planning.planner import plan_recipe
from llmft.planning.processes import NCCL_BUFFERS, Processes, named_processes
from llmft.planning.roofline import LINKS, SENT, SYNC_SECONDS, named_card, on_card


def rows(*lengths: int) -> list[Encoded]:
    return [Encoded((1,) * length, (1,) * length) for length in lengths]


def counted(lengths, count, **train):
    settings = TrainSettings(num_train_epochs=1, **train)
    return choose(rows(*lengths), settings, 0, 100, 1.0, processes=Processes(count))[0]


def test_a_step_s_passes_are_dealt_as_the_loop_deals_them():
    train = {"per_device_train_batch_size": 1, "train_batch_size": 6}
    alone, two, three = (counted([10] * 12, count, **train) for count in (1, 2, 3))
    assert [c.steps for c in (alone, two, three)] == [2, 2, 2]
    assert [c.passes_per_step for c in (alone, two, three)] == [6, 3, 2]
    assert [c.busiest for c in (alone, two, three)] == pytest.approx([1, 1 / 2, 1 / 3])


def test_without_a_batch_size_over_all_steps_are_fewer_and_larger():
    train = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}
    alone, four = (counted([10] * 48, count, **train) for count in (1, 4))
    assert (alone.steps, four.steps) == (8, 2)
    assert alone.passes_per_step == four.passes_per_step == 3


def test_the_busiest_process_is_waited_for():
    # One step of two passes: 30 tokens and 10, whichever comes first.
    train = {"per_device_train_batch_size": 1, "train_batch_size": 2}
    assert counted([30, 10], 2, **train).busiest == pytest.approx(0.75)
    by_tokens = {"per_device_train_batch_size": 1, "train_batch_size": 8}
    full = counted([10] * 8, 4, **by_tokens, per_device_train_tokens=80)
    assert (full.passes_per_step, full.busiest) == (1, 0.25), "one pass would leave three idle"


def trained(recipe, loaded, count, **train):
    recipe["stages"][0]["train"] |= train
    return plan_recipe(loaded(recipe), in_ram=False, gpu="H100", processes=Processes(count))


def test_each_has_the_whole_model_and_a_flat_copy_of_the_gradients(recipe, loaded, monkeypatch):
    from llmft.system import distributed

    seen = []
    plain = distributed.sum_gradients

    def summed(parameters, sum_in_place):
        parameters = list(parameters)
        plain(parameters, lambda whole: seen.append((len(parameters), whole.numel())))

    monkeypatch.setattr(distributed, "sum_gradients", summed)
    alone = trained(recipe, loaded, 1, train_batch_size=8).stages[0]
    assert not seen
    two = trained(recipe, loaded, 2).stages[0]
    assert {numbers for _, numbers in seen} == {two.trainable_parameters}
    assert two.peaks[0].by_kind == alone.peaks[0].by_kind
    assert two.computed.summed_bytes == 4 * two.trainable_parameters


def test_the_copy_counts_where_it_is_the_peak(recipe, loaded):
    """Where next to nothing is computed, the peak has gradients and their copy, by hand."""
    recipe["stages"][0]["adapter"] = {"method": "lora", "r": 512}
    # One short row: its activations are small beside an adapter of such a rank.
    recipe["stages"][0]["data"]["limit"] = 2
    train = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1}
    alone, two = (
        next(p for p in trained(recipe, loaded, count, **train).stages[0].peaks
             if p.phase == "train")
        for count in (1, 2)
    )  # fmt: skip
    # In float32: the adapter, its two moments, its gradients and their copy.
    fixed = sum(two.by_kind[kind] for kind in ("weights", "workspaces"))
    assert two.tensors == pytest.approx(fixed + 5 * two.by_kind["adapter"], rel=0.001)
    assert alone.tensors < two.tensors


def test_what_cannot_be_dealt_out_is_refused_as_run_refuses_it(recipe, loaded):
    with pytest.raises(RecipeError, match="8 rows cannot be dealt out to 3 processes") as caught:
        trained(recipe, loaded, 3, train_batch_size=8)
    assert caught.value.faults[0].code == "E023"


def test_time_is_that_of_the_busiest_and_of_summing(recipe, loaded):
    card = SimpleNamespace(name="c", memory=80, flops=1e7, bandwidth=1e15, link="PCIe 5")
    alone, two = (
        trained(recipe, loaded, count, train_batch_size=8, per_device_train_batch_size=1)
        for count in (1, 2)
    )
    before, after = (on_card(plan, card).stages[0].parts["training"] for plan in (alone, two))
    steps, size = two.stages[0].counts.steps, two.stages[0].computed.summed_bytes
    summing = size / (SENT[1] * LINKS["PCIe 5"]) + SYNC_SECONDS[1]  # 2 (n - 1) / n is 1
    busiest = two.stages[0].counts.busiest
    per_token = [p.stages[0].computed.train_flops / p.stages[0].computed.tokens
                 for p in (alone, two)]  # fmt: skip
    assert 0.5 <= busiest < 0.65
    work = before.likely * busiest * per_token[1] / per_token[0]
    assert after.likely == pytest.approx(work + summing * steps)
    assert Processes(4).sent(100) == 150


def test_nccl_takes_some_of_each_gpu_and_one_process_has_none():
    memory = named_memory("24GB")
    assert memory.shared_by(Processes(1)).room == memory.room
    assert memory.shared_by(Processes(2)).room == memory.room - NCCL_BUFFERS


def test_every_card_has_a_known_link():
    from llmft.planning.roofline import CARDS

    assert {card.link for card in CARDS} == set(LINKS)
    assert LINKS[named_card("H100").link] == 450e9


def test_gpus_of_this_machine_are_those_that_are_there(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert named_processes(2, None) == Processes(2)
    with pytest.raises(RecipeError, match="more GPUs than this machine has: 2 GPUs"):
        named_processes(4, None)
    assert named_processes(4, "H100") == Processes(4)


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_layers_that_are_divided_are_counted_as_a_share_and_two_whole_ones(recipe, loaded, adapter):
    from llmft.modeling.tiny_models import tiny_llama

    recipe["stages"][0]["adapter"] = {"method": adapter}
    whole, divided = (
        trained(recipe, loaded, 4, shard_base=asked).stages[0] for asked in (False, True)
    )
    layers = [sum(p.nbytes for p in layer.parameters()) for layer in tiny_llama().model.layers]
    there = sum(layers) / 4 + 2 * layers[0] * 3 / 4  # both of its layers, while each is computed
    kinds = [stage.peaks[0].by_kind for stage in (whole, divided)]
    weights = [kind.get("weights", 0) + kind.get("trained weights", 0) for kind in kinds]
    slack = 0 if adapter == "lora" else 0.3 * layers[0]  # a weight has one owner, which is whole
    assert weights[1] == pytest.approx(weights[0] - sum(layers) + there, abs=1 + 2 * slack)
    link = [stage.computed.gathered_bytes for stage in (whole, divided)]
    assert link == [0, sum(layers) * (2 if adapter == "lora" else 3)]
    if adapter == "full":
        before, after = (
            next(p for p in stage.peaks if p.phase == "train").by_kind for stage in (whole, divided)
        )
        states = before["optimiser"] - after["optimiser"]  # two numbers for each that is elsewhere
        assert 0.6 * 2 * sum(layers) < states < 0.9 * 2 * sum(layers)


def test_a_plan_keeps_no_copies_in_16_bits_of_weights_that_are_divided(recipe, loaded, monkeypatch):
    import torch
    from llmft_alignments.sft import CompletionLoss

    kept, loss = [], CompletionLoss.loss

    def watched(self, model, batch):
        kept.append(torch.is_autocast_cache_enabled())
        return loss(self, model, batch)

    monkeypatch.setattr(CompletionLoss, "loss", watched)
    recipe["stages"][0]["adapter"] = {"method": "full"}
    trained(recipe, loaded, 2, shard_base=False, bf16=True)
    whole = set(kept)
    kept.clear()
    trained(recipe, loaded, 2, shard_base=True, bf16=True)
    assert whole == {True}
    assert set(kept) == {False}


@pytest.mark.parametrize(("count", "says"), [(1, True), (2, False)])
def test_a_plan_of_one_gpu_says_that_nothing_is_divided(recipe, loaded, count, says):
    (stage,) = trained(recipe, loaded, count, shard_base=True).stages
    assert any("nothing to divide on one GPU" in remark for remark in stage.remarks) is says


def test_the_command_says_how_they_are_started_and_what_a_step_is(
    recipe, tmp_path, capsys, monkeypatch
):
    recipe["stages"][0]["train"] = {
        "max_steps": 3, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 4,
        "per_device_train_tokens": 900,
    }  # fmt: skip
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    monkeypatch.setattr(plan, "UNEVEN", 0.5)  # an even share is told too
    words = ["plan", str(path), "--gpu", "H100", "--gpus", "4"]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "torchrun --nproc_per_node 4 -m llmft run" in told
    assert "only: 16 rows a step over all, where one process has 4" in told
    assert "the busiest GPU has" in told
    assert "each H100 has room for" in told
    assert "for NCCL, assumed" in told
    assert "summed over NVLink 4" in told
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["gpus"] == 4
    assert found["memory"]["for_nccl"] == NCCL_BUFFERS
    assert main(["plan", str(path), "--gpus", "2", "--measure", "5"]) == 2
    assert "--gpus and --measure exclude each other" in capsys.readouterr().err
