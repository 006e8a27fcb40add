"""Children that run tests on a changed copy of the tree, forked after the slow imports."""

from __future__ import annotations

import compileall
import os
import py_compile
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

SLOW_IMPORTS = (
    "torch", "transformers", "peft", "accelerate", "datasets", "bitsandbytes", "pytest",
    "hypothesis", "safetensors.torch", "ruamel.yaml", "pydantic", "typer", "rich.console",
    "transformers.models.llama.modeling_llama", "transformers.models.gpt2.modeling_gpt2",
    "transformers.generation", "torch.distributed", "torch._dynamo", "trl",
)  # fmt: skip
NONE_COLLECTED = 5
OF_EXTENDED = "cases of an --extended run:"
"""Stands in what a child said before the cases that a plain run leaves out."""


@dataclass
class Job:
    """Tests to run on one changed file, and what came of it: an exit code, or None for too long."""

    file: str
    source: bytes | None
    tests: Sequence[str]
    seconds: float
    code: int | None = None
    took: float = 0.0
    said: str = ""


@dataclass
class Copy:
    """A copy of the tree for one child at a time."""

    root: Path
    job: Job | None = None
    pid: int = 0
    since: float = 0.0
    before: bytes = field(default=b"")


def copied(root: Path, into: Path) -> Path:
    """Copy what git knows or would add, compiled so that a changed file is always seen."""
    command = ["git", "-C", str(root), "ls-files", "-co", "--exclude-standard", "-z"]
    listed = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (root / name).is_file():
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, into / name)
    mode = py_compile.PycInvalidationMode.CHECKED_HASH
    for folder in ("llmft", "plugins"):
        compileall.compile_dir(into / folder, quiet=2, invalidation_mode=mode)
    return into


def warm() -> None:
    """Import what all children need, once; nothing of llmft's."""
    for name in SLOW_IMPORTS:
        with suppress(ImportError):
            __import__(name)
    import torch

    torch.set_num_threads(1)
    loaded = [name for name in sys.modules if name.partition(".")[0].startswith("llmft")]
    assert not loaded, f"{loaded} would not be seen changed"


def run_all(jobs: Sequence[Job], copies: Sequence[Copy], done: Callable[[Job], None]) -> None:
    """Run every job in a free copy, and tell of each that has ended."""
    waiting = list(reversed(jobs))
    while waiting or any(one.pid for one in copies):
        for one in copies:
            if not one.pid and waiting:
                _start(one, waiting.pop())
        time.sleep(0.02)
        for one in _ended(copies):
            job = one.job
            assert job is not None
            if job.source is not None:
                (one.root / job.file).write_bytes(one.before)
            one.job, one.pid = None, 0
            done(job)


def _start(one: Copy, job: Job) -> None:
    path = one.root / job.file
    one.job, one.since = job, time.monotonic()
    if job.source is not None:
        one.before = path.read_bytes()
        path.write_bytes(job.source)
    one.pid = os.fork()
    if not one.pid:
        _be_child(one.root, job.tests)


def _ended(copies: Sequence[Copy]) -> Iterator[Copy]:
    for one in copies:
        if not one.pid:
            continue
        job = one.job
        assert job is not None
        pid, status = os.waitpid(one.pid, os.WNOHANG)
        job.took = time.monotonic() - one.since
        if pid:
            job.code = os.waitstatus_to_exitcode(status)
        elif job.took > job.seconds:
            with suppress(ProcessLookupError):
                os.killpg(one.pid, signal.SIGKILL)
            os.waitpid(one.pid, 0)
            job.code = None
        else:
            continue
        with suppress(ProcessLookupError, PermissionError):  # what its tests had left running
            os.killpg(one.pid, signal.SIGKILL)
        job.said = (one.root / "out.txt").read_text("utf-8", errors="replace")
        yield one


def _be_child(root: Path, tests: Sequence[str]) -> None:
    code = 70
    try:
        os.setsid()
        os.chdir(root)
        out = os.open(root / "out.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        paths = [str(root), str(root / "plugins")]
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)
        os.environ.pop("LLMFT_REAL_ASSETS", None)  # the nearest tests are those that need nothing
        scratch = root.parent / f"{root.name}-scratch"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        os.environ["TMPDIR"] = str(scratch)
        sys.path[:0] = paths
        import tempfile

        tempfile.tempdir = None
        import pytest

        options = ["-x", "-q", "--no-header", "--tb=line", "-p", "no:cacheprovider"]
        runs = [[*options, test] for test in tests]
        if more := [test for test in tests if "extended" in (root / test).read_text("utf-8")]:
            runs += [[*options, "--extended", "-m", "extended", test] for test in more]
        for run in runs:  # file by file: what the nearest one kills needs no other
            if "--extended" in run:
                print(OF_EXTENDED, flush=True)
            code = int(pytest.main(run))
            if code not in (0, NONE_COLLECTED):
                break
        else:
            code = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        sys.stdout.flush()
        os._exit(code)
