"""A process that has imported everything, and forks one child for each run it is asked for.

It reads one JSON object a line: {"argv", "out", "fault"}; it answers with the child's pid, and then
with its exit code (negative: the signal that ended it). Another module may be named on its command
line: its `warm` imports, its `install` prepares a fault, and its `main` runs.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def serve(program: Any) -> None:
    program.warm()
    print("ready", flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            child(program, job)
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def warm() -> None:
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
