"""Scores and reference log-likelihoods dealt out over two processes: those of one, to the bit."""

from __future__ import annotations

import json
import subprocess
import sys

from llmft.system import distributed

PROGRAM = """
import json, os, socket, sys
import torch
torch.set_num_threads(1)
from llmft.api import Encoded
from llmft.evaluation.evaluation import row_losses
from llmft.evaluation.generation import generate
from llmft.modeling.tiny_models import tiny_llama, tiny_tokenizer
from llmft.system import distributed
from llmft.system.launcher import launch
from llmft_alignments.pairs import over_batches, row_logps
from types import SimpleNamespace

def found():
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    model.lm_head.weight.data.mul_(20)
    rows = []
    for n in range(23):
        ids = tuple((7 * k * k + n) % 200 + 3 for k in range(5 + n % 9))
        rows.append(Encoded(ids, (-100, -100) + ids[2:], f"row {n}"))
    seen = []
    losses = row_losses(model, rows, 4, lambda done, total: seen.append(done))
    prompts = [row.input_ids[:3 + k % 3] for k, row in enumerate(rows)]
    texts = generate(model, tokenizer, prompts, max_new_tokens=6, batch_size=4)
    context = SimpleNamespace(
        models=SimpleNamespace(model=model), log=SimpleNamespace(progress=lambda *_: None),
        train=SimpleNamespace(per_device_eval_batch_size=4),
    )
    logps = over_batches(context, rows, lambda some: row_logps(model, some), "reference").tolist()
    told = {"mean": losses.mean.hex(), "sums": [s.hex() for s in losses.sums], "texts": texts}
    return {**told, "reference": [value.hex() for value in logps]}, seen

def child(rank, port, out):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
                      MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    with distributed.joined(launch()):
        alone, every = found()
        with distributed.dealing_out():
            shared, own = found()
        halted = False
        try:
            with distributed.dealing_out(lambda: rank == 1):
                found()
        except distributed.Halted:
            halted = True
        told = {"alone": alone, "shared": shared, "every": every, "own": own, "halted": halted}
        open(f"{out}.{rank}", "w").write(json.dumps(told))

tiny_llama()  # what it imports, both processes have
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
pids = []
for rank in (0, 1):
    pids.append(os.fork())
    if not pids[-1]:
        code = 1
        try:
            child(rank, port, sys.argv[1])
            code = 0
        finally:
            os._exit(code)
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids))
"""


def test_two_processes_share_the_batches_and_get_the_bits_of_one(tmp_path):
    out = tmp_path / "out"
    subprocess.run([sys.executable, "-c", PROGRAM, str(out)], check=True, timeout=300)
    first, second = (json.loads((tmp_path / f"out.{rank}").read_text()) for rank in (0, 1))
    assert first["shared"] == second["shared"] == first["alone"] == second["alone"]
    assert any(first["alone"]["texts"])
    assert first["every"] == [4, 8, 12, 16, 20, 23]
    assert (first["own"], second["own"]) == ([8, 16, 23], [8, 16, 23])  # 3 batches each, of 6
    assert first["halted"]
    assert second["halted"]


def test_one_process_computes_all_and_is_not_halted():
    with distributed.dealing_out(lambda: True):
        assert distributed.dealt([1, 2, 3], lambda part: part * part) == [1, 4, 9]
