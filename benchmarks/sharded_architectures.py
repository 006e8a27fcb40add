"""Every causal model of the installed transformers, divided between two processes and whole.

    python benchmarks/sharded_architectures.py [MODEL_TYPE...]

For each model type a small random copy is computed and its gradients are taken, with the base
frozen behind a trained embedding and with all weights trained, as `train.shard_base` divides them.
Prints a line for each: whether loss and gradients are those of the whole model.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from benchmarks.architectures import AS_PUBLISHED, model_types
from llmft.modeling.lever_trial import Trial
from llmft.modeling.sharded_layers import (
    ATTRIBUTE,
    collect_gradients,
    is_here,
    misfit,
    owner_of,
    shard,
)
from llmft.system import distributed
from llmft.system.launcher import launch


def made(kind: str) -> Any:
    """Return the small copy of a model type, the same each time, in training mode."""
    from transformers import CONFIG_MAPPING

    from llmft.api.model_settings import ModelSource
    from llmft.modeling.base_model import dense_attention

    config = CONFIG_MAPPING[kind](**AS_PUBLISHED.get(kind, {}))
    if getattr(config, "is_decoder", None) is False:
        config.is_decoder = True
    model: Any = Trial.of(config, dense_attention(ModelSource(path=kind), config)).model
    return model.eval()  # no dropout; gradients are taken all the same


def gradients(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the loss of two rows and the gradients of what is trained, by name."""
    ids = (torch.arange(24) % 13 + 3).view(2, 12)
    logits = model(input_ids=ids, use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def verdict(kind: str) -> str:
    """Return what is wrong with a model type's division; '' where nothing is."""
    try:
        whole = made(kind)
    except Exception as error:
        return f"not tried: {type(error).__name__}"
    if why := misfit(whole):
        return f"refused: {why}"
    for trained in (False, True):
        whole, model = made(kind), made(kind)
        for one in (whole, model):
            one.requires_grad_(trained)
            one.get_input_embeddings().weight.requires_grad_(True)
        wanted_loss, wanted = gradients(whole)
        shard(model, "cpu", trained=trained)
        if not getattr(model, ATTRIBUTE).divides:
            return "all weights are shared"
        loss, found = gradients(model)
        if not torch.equal(loss, wanted_loss):
            return f"trained {trained}: the loss is {float(loss)}, not {float(wanted_loss)}"
        collect_gradients(model)
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad or not is_here(parameter):
                continue
            times = 1 if owner_of(parameter) is None else distributed.count()
            expected = wanted.get(name, torch.zeros_like(parameter)) * times
            given = found.get(name) if owner_of(parameter) is None else parameter.grad
            given = torch.zeros_like(parameter) if given is None else given
            if not torch.allclose(given, expected, rtol=1e-5, atol=1e-7, equal_nan=True):
                return f"trained {trained}: the gradient of {name} is another"
    return ""


def child(rank: int, port: int, kinds: list[str], out: Path) -> None:
    """Try model types together with the other process."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
                   "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(port)}  # fmt: skip
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with distributed.joined(launch()), distributed.in_step(True):
        told = {}
        for kind in kinds:
            try:
                told[kind] = verdict(kind)
            except Exception as error:  # the same in both processes
                told[kind] = f"trained: {type(error).__name__}: {error}"
            distributed.refuse_out_of_step()
            if rank == 0:
                print(f"{kind}: {told[kind] or 'ok'}", flush=True)
        out.write_text(json.dumps(told))


def main(kinds: list[str]) -> int:
    """Try each of the model types, print what came of it, and return the exit code."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / str(rank) for rank in (0, 1)]
        pids = []
        for rank in (0, 1):
            pids.append(os.fork())
            if pids[-1] == 0:
                try:
                    child(rank, port, kinds, files[rank])
                    os._exit(0)
                finally:
                    os._exit(1)
        failed = any(os.waitpid(pid, 0)[1] for pid in pids)
        told = [json.loads(file.read_text()) for file in files if file.is_file()]
    if failed or len(told) < 2:
        return 1
    both = {kind: told[0][kind] or told[1][kind] for kind in kinds}
    counts = Counter(said.partition(":")[0] or "as the whole model" for said in both.values())
    print(", ".join(f"{said}: {count}" for said, count in counts.most_common()))
    return int(any(said.startswith("trained") for said in both.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or model_types()))
