"""A process that has run once, and forks one child for each run it is asked for.

It reads one JSON object a line: {"argv", "out", "fault", "processes"}; it answers with the child's
pid, and then with its exit code (negative: the signal that ended it). Another module may be named
on its command line: its `warm` imports, its `install` prepares a fault, its `main` runs. Several
processes find each other as those of torchrun do; the first one has the fault, and is told of.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads do not outlive a fork


def serve(program: Any) -> None:
    program.warm()
    print("ready", flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        pid, *others = start(program, job)
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        for other in others:
            if code:  # the launcher ends them
                os.kill(other, signal.SIGKILL)
            _, status = os.waitpid(other, 0)
            code = code or os.waitstatus_to_exitcode(status)
        print(code, flush=True)


def start(program: Any, job: dict) -> list[int]:
    """Fork the processes of a run, and return their pids."""
    count = job.get("processes", 1)
    common = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    if count > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            common["MASTER_PORT"] = str(free.getsockname()[1])
    pids = []
    for rank in range(count):
        pids.append(os.fork())
        if pids[-1] == 0:
            if count > 1:
                os.environ.update(common, RANK=str(rank), LOCAL_RANK=str(rank))
            if rank:
                job |= {"out": f"{job['out']}.{rank}", "fault": None}
            child(program, job)
    return pids


def warm() -> None:
    """Train a tiny run: what it imports, compiles and finds out of the model, each child has."""
    import harness

    from llmft.modeling.tiny_models import tiny_model_folder

    imports()
    with tempfile.TemporaryDirectory() as made:
        home = Path(made)
        rows, recipe = home / "rows.jsonl", home / "recipe.yaml"
        rows.write_text(9 * '{"prompt": "say 1:", "completion": " 1"}\n')
        recipe.write_text(json.dumps(harness.tiny_recipe(tiny_model_folder(home), rows)))
        os.environ["LLMFT_CACHE"] = "off"
        with contextlib.redirect_stdout(None):
            code = main(["run", str(recipe), "--output-dir", str(home / "runs")])
        assert code == 0, code
    os.fsync = lambda handle: None  # a sixth of a run's time, and no test cuts the power
    gc.freeze()  # a collection in a child would copy every page it looks at


def imports() -> None:
    """Import what a run imports."""
    import bitsandbytes  # noqa: F401
    import safetensors.torch  # noqa: F401
    import torch
    from peft import PeftModel  # noqa: F401
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: F401

    import llmft.engine.session
    import llmft.training.loop  # noqa: F401
    from llmft.registry.registry import Registry

    torch.set_num_threads(1)
    list(Registry.discover().records())


def install(**fault: Any) -> Any:
    import faults

    return faults.install(**fault)


def main(argv: list[str]) -> int:
    from llmft.cli import main

    return main.main(argv)


def child(program: Any, job: dict) -> None:
    """Run one command line, with a fault on the way, and leave with its exit code."""
    code = 99
    try:
        out = os.open(job["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(out, 1)
        os.dup2(out, 2)
        # A cache that an earlier child filled would leave this one fewer events to be struck at.
        os.environ["LLMFT_CACHE"] = f"{job['out']}.cache"
        events = program.install(**job["fault"]) if job["fault"] else None
        code = program.main(job["argv"])
        if events is not None:
            Path(job["out"] + ".events").write_text(json.dumps(events.names))
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


if __name__ == "__main__":
    serve(importlib.import_module(sys.argv[1]) if sys.argv[1:] else sys.modules[__name__])
