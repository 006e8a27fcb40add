"""Finishes many small runs in two processes, and counts how many end cleanly.

    python benchmarks/clean_ends.py [--runs 200] [--alignments sft ppo] [--page docs/reliability.md]

The processes are forked from one that has imported everything, find each other as torchrun's do,
and end as `python -m llmft` ends; with `--torchrun` each run is started by torchrun itself, which
takes ten times as long. A run is clean where every process exits with 0, the run says that it is
done, and nothing of an abort is printed. Exits with 1 where one is not.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- clean ends: begin -->", "<!-- clean ends: end -->"
ALIGNMENTS: dict[str, dict[str, Any]] = {
    "sft": {"method": "sft"},
    "ppo": {
        "method": "ppo", "reward": {"method": "length", "target": 4}, "response_length": 4,
    },
}  # fmt: skip
ABORTS = ("terminate called", "Aborted", "SIGABRT", "Signal 6", "exitcode  : -6", "core dumped")


def recipe(folder: Path, alignment: str) -> Path:
    """Write a recipe of one step on a tiny model, and return its file."""
    rows = [{"prompt": f"say {n}:", "completion": f" {n % 7}"} for n in range(8)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage = {
        "name": "s",
        "adapter": {"method": "lora", "r": 2},
        "alignment": ALIGNMENTS[alignment],
        "data": {
            "method": "prompts" if alignment == "ppo" else "jsonl",
            "path": str(folder / "rows.jsonl"),
        },
        "train": {"max_steps": 1, "per_device_train_batch_size": 2, "save_strategy": "no"},
    }
    path = folder / f"{alignment}.yaml"
    path.write_text(
        json.dumps({
            "recipe": 1, "name": alignment, "output_dir": str(folder / "runs"),
            "model": {"path": str(folder / "model")}, "stages": [stage],
        })
    )  # fmt: skip
    return path


def by_torchrun(path: Path) -> str:
    """Run a recipe in two processes of torchrun, and return how it ended."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
        "-m", "llmft", "run", str(path),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    return _end([done.returncode], done.stdout + done.stderr)


def by_fork(path: Path) -> str:
    """Run a recipe in two forked processes that find each other as torchrun's do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    out, pids = path.with_suffix(".out"), []
    out.write_text("")
    for rank in (0, 1):
        pids.append(os.fork())
        if not pids[-1]:
            _as_program(path, out, rank, port)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    return _end(codes, out.read_text("utf-8", "replace"))


def _as_program(path: Path, out: Path, rank: int, port: int) -> None:
    """Be `python -m llmft run` in one process of two, from here to the end."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    handle = os.open(out, os.O_WRONLY | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.argv = ["llmft", "run", str(path)]
    code = 1
    try:
        runpy.run_module("llmft", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    finally:
        os._exit(code)


def _end(codes: list[int], said: str) -> str:
    """Return 'clean', or what was not."""
    if found := next((word for word in ABORTS if word in said), ""):
        return f"'{found}' printed, exit {codes}"
    if any(codes):
        return f"exit {codes}"
    return "clean" if " done in " in said else "it does not say that it is done"


def main() -> int:
    """Run what is asked for, and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--minutes", type=float, help="begin no run after so many minutes")
    parser.add_argument("--alignments", nargs="+", default=list(ALIGNMENTS), choices=ALIGNMENTS)
    parser.add_argument("--torchrun", action="store_true", help="start each run by torchrun")
    parser.add_argument("--page", type=Path)
    asked = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # Whatever a run imports is imported once, before the processes are forked.
    from peft import PeftModel  # noqa: F401
    from transformers import LlamaForCausalLM  # noqa: F401

    import llmft.cli.main
    import llmft.engine.session
    import llmft.engine.worker
    import llmft.training.loop  # noqa: F401
    from llmft.modeling.tiny_models import tiny_model_folder
    from llmft.recipes.load import load_recipe
    from llmft.registry.registry import Registry

    ends: Counter[tuple[str, str]] = Counter()
    started = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="llmft-ends-"))  # no child takes it away at its exit
    try:
        tiny_model_folder(folder)
        recipes = {name: recipe(folder, name) for name in asked.alignments}
        for path in recipes.values():
            load_recipe(path, Registry.discover())
        for number in range(asked.runs):
            if asked.minutes and time.monotonic() - started > 60 * asked.minutes:
                break
            name = asked.alignments[number % len(asked.alignments)]
            end = (by_torchrun if asked.torchrun else by_fork)(recipes[name])
            ends[name, end] += 1
            if end != "clean":
                print(f"run {number}, {name}: {end}", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    minutes = (time.monotonic() - started) / 60
    clean = sum(count for (_, end), count in ends.items() if end == "clean")
    lines = [
        f"- {name}: {end}: {count}" if end != "clean" else f"- {name}: {count} ended cleanly"
        for (name, end), count in sorted(ends.items())
    ]
    how = " --torchrun" if asked.torchrun else ""
    told = f"{clean} of {ends.total()} finished runs in two processes ended cleanly.\n\n"
    told += "\n".join(lines)
    told += f"\n\nMeasured by `python benchmarks/clean_ends.py{how}` in {minutes:.0f} minutes."
    print(told)
    if asked.page:
        text = asked.page.read_text("utf-8")
        before, after = text.partition(BEGIN)[0], text.partition(END)[2]
        asked.page.write_text(f"{before}{BEGIN}\n{told}\n{END}{after}", "utf-8")
    return 0 if clean == ends.total() > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
