"""Forks pairs of processes that find each other as those of torchrun do, after one import for all.

python tests/end_to_end/pair.py JOBS.json: a list of {"argv", "out", "when", "kill"}, run one after
another; out: a file for each process. kill: [[process, signal]], once the first process has printed
`when`. environment: variables for all. wait: as `ends_of` takes it. Prints the exit codes of each
pair (negative: a signal).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path


def main(jobs: list[dict]) -> None:
    import bitsandbytes  # noqa: F401
    from peft import PeftModel  # noqa: F401
    from transformers import LlamaForCausalLM  # noqa: F401

    import llmft.engine.worker
    import llmft.training.loop  # noqa: F401

    codes = []
    for job in jobs:
        pids = start(job)
        if "kill" in job:
            wait_for(Path(job["out"][0]), job["when"])
            for process, number in job["kill"]:
                os.kill(pids[process], number)
        codes.append(ends_of(pids, job.get("wait", 28)))
    print(json.dumps(codes))


def start(job: dict) -> list[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    pids = []
    for rank in (0, 1):
        pids.append(os.fork())
        if pids[-1] == 0:
            os.environ.update(job.get("environment", {}))
            os.environ.update(common, RANK=str(rank), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE="2")
            child(job["argv"], job["out"][rank])
    return pids


def ends_of(pids: list[int], wait: float = 28) -> list[int]:
    """Wait for all, as torchrun does: where one fails, it ends the others (2 s later).

    wait: seconds after which those that are still there are killed; torchrun's are 30 in all.
    """
    codes: dict[int, int] = {}
    failed, ends = None, signal.SIGTERM
    while len(codes) < len(pids):
        for pid in pids:
            if pid not in codes and (found := os.waitpid(pid, os.WNOHANG))[0]:
                codes[pid] = os.waitstatus_to_exitcode(found[1])
                if codes[pid] and failed is None:
                    failed = time.monotonic()
        if failed and time.monotonic() > failed + 2:
            for pid in set(pids) - set(codes):
                os.kill(pid, ends)
            failed, ends = time.monotonic() + wait, signal.SIGKILL
        time.sleep(0.01)
    return [codes[pid] for pid in pids]


def child(argv: list[str], path: str) -> None:
    code = 99
    try:
        out = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(out, 1)
        os.dup2(out, 2)
        from llmft.cli import main

        code = main.main(argv)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def wait_for(out: Path, text: str) -> None:
    end = time.monotonic() + 60
    while not (out.exists() and text in out.read_text("utf-8", "replace")):
        if time.monotonic() > end:
            raise SystemExit(f"'{text}' was never printed")
        time.sleep(0.002)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
