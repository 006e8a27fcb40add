"""A model divided between two processes: its numbers, what it holds, and what cannot be done."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import pytest

PROGRAM = """
import json, os, sys, traceback
import torch
torch.set_num_threads(1)
from llmft.api.errors import StageError
from llmft.modeling.sharded_layers import (
    ATTRIBUTE, collect_gradients, is_here, is_sharded, owner_of, shard,
)
from llmft.modeling.recompute import checkpoint_layers
from llmft.modeling.tiny_models import tiny_llama
from llmft.system import distributed
from llmft.system.launcher import launch

def gradients(model, passes):
    torch.manual_seed(1)
    ids = torch.arange(3, 27).view(2, 12)
    for _ in range(passes):
        loss = model(input_ids=ids, labels=ids).loss
        with torch.no_grad():
            model(input_ids=ids)  # as a reference would, before the way back
        loss.backward()
    return loss, {name: p.grad for name, p in model.named_parameters() if p.requires_grad}

def made(checkpointed):
    model = tiny_llama()
    model.model.layers.extend(tiny_llama(1).model.layers)
    model.config.num_hidden_layers = 4
    model.requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layers.1.mlp" in name or "embed" in name)
    if checkpointed:
        checkpoint_layers(model, every_n_layers=2)
    return model.train()

def trained():
    whole, model = (made(False).requires_grad_(True) for _ in range(2))
    _, wanted = gradients(whole, 2)
    bytes_ = sum(p.nbytes for p in model.model.layers.parameters())
    shard(model, "cpu", trained=True)
    weights = dict(model.named_parameters())
    ours = {n: p for n, p in weights.items() if owner_of(p) == distributed.rank()}
    gradients(model, 2)
    between = [n for n, p in weights.items() if p.grad is not None and owner_of(p) is not None]
    collect_gradients(model)
    found = {n: p.grad for n, p in weights.items() if owner_of(p) is not None}
    absent = [bool(p.isnan().all()) for p in weights.values() if not is_here(p)]
    told = {
        "ours": sorted(ours), "share": sum(p.nbytes for p in ours.values()) / bytes_,
        "outside": sorted(n for n, p in weights.items() if owner_of(p) is None),
        "between": between, "elsewhere": [n for n, g in found.items() if g is None],
        # Both processes computed the same, so that a sum is twice one's.
        "same": all(torch.allclose(found[n], 2 * wanted[n], rtol=1e-5) for n in ours),
        "absent": all(absent), "after": held(model),
    }
    getattr(model, ATTRIBUTE).make_whole()
    first = all(torch.equal(p, dict(whole.named_parameters())[n]) for n, p in weights.items())
    return {**told, "first": first}

def held(model):
    sharded = getattr(model, ATTRIBUTE)
    return [layer.whole.untyped_storage().nbytes() > 0 for layer in sharded.layers]

def child(rank, port, out):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
                      MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    told = {}
    with distributed.joined(launch()), distributed.in_step(True):
        for checkpointed in (False, True):
            loss, wanted = gradients(made(checkpointed), 2)
            model = made(checkpointed)
            shard(model, "cpu")
            most = []
            for layer in model.model.layers:
                layer.register_forward_hook(lambda *_: most.append(sum(held(model))))
                layer.mlp.register_full_backward_hook(lambda *_: most.append(sum(held(model))))
            given, found = gradients(model, 2)
            told[f"checkpointed {checkpointed}"] = {
                "loss": bool(given == loss),
                "same": all(torch.equal(found[name], g) for name, g in wanted.items()),
                "names": found.keys() == wanted.keys(), "most": max(most),
                "after": held(model), "sharded": is_sharded(model),
                "shares": sum(len(l.share) for l in getattr(model, ATTRIBUTE).layers),
                "frozen": sum(p.nbytes for p in model.model.layers.parameters()
                              if not p.requires_grad),
                "absent": bool(model.model.layers[0].mlp.up_proj.weight.isnan().all()),
            }
        told["trained"] = trained()
        distributed.refuse_out_of_step()
        layers = getattr(model, ATTRIBUTE).layers
        for number in (0, 2) if rank else (2, 0):
            layers[number].gather()
        try:
            distributed.refuse_out_of_step()
        except StageError as error:
            told["out of step"] = error.faults[0].code
        open(f"{out}.{rank}", "w").write(json.dumps(told))

tiny_llama()
pids = []
for rank in (0, 1):
    pids.append(os.fork())
    if pids[-1] == 0:
        try:
            child(rank, int(sys.argv[1]), sys.argv[2])
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
sys.exit(any(os.waitpid(pid, 0)[1] for pid in pids))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> list[dict]:
    """What each of the two processes says."""
    out = tmp_path_factory.mktemp("sharded") / "told"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-c", PROGRAM, str(port), str(out)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(out.with_suffix(f".{rank}").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("how", ["checkpointed False", "checkpointed True"])
@pytest.mark.parametrize("rank", [0, 1])
def test_loss_and_gradients_have_the_bits_of_a_whole_model(told, rank, how):
    found = told[rank][how]
    assert found["sharded"]
    assert found["loss"]
    assert found["names"]
    assert found["same"]


@pytest.mark.parametrize("how", ["checkpointed False", "checkpointed True"])
def test_each_process_has_half_and_two_whole_layers_for_a_while(told, how):
    for found in (one[how] for one in told):
        assert found["most"] == 2
        assert not any(found["after"])
        assert found["absent"]  # to read a weight that is not there gives no number by chance
        assert found["frozen"] / 2 <= found["shares"] < found["frozen"] / 2 + 4 * 32
    assert told[0][how]["shares"] == told[1][how]["shares"]


def test_each_trained_weight_has_one_owner_which_has_the_summed_gradient(told):
    first, second = (one["trained"] for one in told)
    assert not set(first["ours"]) & set(second["ours"])
    assert sorted(first["elsewhere"]) == second["ours"]
    assert sorted(second["elsewhere"]) == first["ours"]
    for found in (first, second):
        assert 0.4 < found["share"] < 0.6
        assert found["outside"] == ["lm_head.weight", "model.embed_tokens.weight",
                                    "model.norm.weight"]  # fmt: skip
        assert found["between"] == []  # a layer's gradients are given up with it
        assert found["same"]
        assert found["absent"]
        assert not any(found["after"])
    assert first["first"]  # it has all weights in the end, to save them
    assert not second["first"]


def test_processes_that_gather_other_layers_are_told_before_an_update(told):
    assert [one["out of step"] for one in told] == ["E309", "E309"]


def test_what_several_layers_share_is_not_divided():
    import torch

    from llmft.modeling.sharded_layers import divisible_parameters, layers_of, misfit
    from llmft.modeling.tiny_models import tiny_llama

    assert layers_of(torch.nn.Linear(2, 2)) == []
    model = tiny_llama()
    assert misfit(model) == ""
    model.config.model_type = "rwkv"
    assert "from outside of them" in misfit(model)
    first, second = layers_of(model)
    second.mlp.up_proj.weight = first.mlp.up_proj.weight
    first.mlp.down_proj.weight = model.lm_head.weight
    alone = {id(p) for layer in divisible_parameters(model) for p in layer}
    names = {name for name, p in model.named_parameters() if id(p) in alone}
    assert "model.layers.0.mlp.gate_proj.weight" in names
    assert not {"model.layers.0.mlp.up_proj.weight", "lm_head.weight"} & names
    assert not any("embed" in name or name == "model.norm.weight" for name in names)
    assert len(names) == 2 * 9 - 3  # each layer's 9, less the two places of one and that of another
