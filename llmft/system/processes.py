"""The one module that starts programs: by their full path, and never out of the working folder.

Folders that came from somebody else hold files that programs pick up by name: modules that shadow
a library's, tools that shadow the system's. Nothing that llmft starts looks there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

Program = subprocess.Popen[str]
"""A program that was started, and answers in text."""

_SEARCHED = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH")


def shut_out_working_folder() -> None:
    """Take what means the working folder out of the places where modules and programs are found.

    An empty or a relative entry means it, as does the first one under `python -m llmft`. Libraries
    start programs too, by name. Where llmft itself lies in the working folder, that one stays.
    """
    os.environ.update(kept := _without_folder(os.environ))
    for name in _SEARCHED:
        if name not in kept:
            os.environ.pop(name, None)
    sys.path[:] = [entry for entry in sys.path if not _is_working_folder(entry)]


def python_command(module: str, *words: str) -> list[str]:
    """Return the command that runs a module in a Python of its own (-P: not from the folder)."""
    return [sys.executable, "-P", "-m", module, *words]


def environment(given: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return an environment in which a child finds the modules that this process finds.

    given: the variables to pass on; default: those of this process.
    """
    kept = dict(os.environ if given is None else given)
    kept = _without_folder(kept)
    known = [entry for entry in sys.path if not _is_working_folder(entry)]
    here = str(Path(__file__).parents[2])  # where llmft was imported from
    kept["PYTHONPATH"] = _absolute([here, *known])
    return kept


def run_python(
    module: str, *words: str, out: IO[bytes], seconds: float | None = None, grace: float = 0.0
) -> int:
    """Run a module in a Python of its own until it ends, and return its exit code.

    out: takes what it prints, on both of its streams. seconds: after which it is asked to stop
    (SIGTERM), and after `grace` more ended; default: never.
    """
    command = python_command(module, *words)
    if seconds is None:
        return subprocess.run(command, stdout=out, stderr=out, env=environment()).returncode
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment()
    )
    try:
        return child.wait(seconds)
    except subprocess.TimeoutExpired:
        child.terminate()
        with suppress(subprocess.TimeoutExpired):
            return child.wait(grace)
    finally:
        if child.poll() is None:
            child.kill()
    return child.wait()


def start_python(module: str, *words: str, variables: Mapping[str, str] | None = None) -> Program:
    """Return a Python of its own that runs a module: text in at its stdin, out at its stdout.

    variables: its environment; default: that of this process. A Ctrl-C does not reach it.
    """
    return subprocess.Popen(
        python_command(module, *words),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
        env=environment(variables),
        start_new_session=True,
    )


def found_program(name: str) -> Path | None:
    """Return the full path of an installed program or script; None where PATH has none.

    What the working folder holds is not found, whatever PATH says.
    """
    path = shutil.which(name, path=_absolute(os.environ.get("PATH", "").split(os.pathsep)))
    return Path(path).resolve() if path else None


def run_program(program: Path, *words: str, out: IO[bytes]) -> int:
    """Run a program until it ends, and return its exit code.

    program: its full path. out: takes what it prints, on both of its streams.
    """
    return subprocess.run(
        [str(program.absolute()), *words],
        stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment(),
    ).returncode  # fmt: skip


def run_script(script: Path, *words: str, modules: Sequence[Path], out: IO[bytes]) -> int:
    """Run a Python file until it ends, and return its exit code.

    modules: the folders in which it finds modules, before those of this process; its own folder is
    not among them unless it is named. out: as `run_program` has it.
    """
    variables = environment()
    found = [*(str(folder.absolute()) for folder in modules), variables["PYTHONPATH"]]
    command = [sys.executable, "-P", str(script.absolute()), *words]
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
        env=variables | {"PYTHONPATH": os.pathsep.join(found)},
    ).returncode  # fmt: skip


def answer_of(tool: str, *words: str, seconds: float) -> str | None:
    """Return what a system's tool prints; None where it is not installed, fails or is too slow."""
    path = found_program(tool)
    if path is None:
        return None
    try:
        done = subprocess.run(
            [str(path), *words], capture_output=True, text=True, timeout=seconds, check=True,
            env=environment(),
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def _without_folder(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variables with search paths of absolute entries; one that is left empty is gone.

    An empty PATH means the working folder to the system's own search.
    """
    searched = {
        name: _absolute(variables[name].split(os.pathsep))
        for name in _SEARCHED
        if name in variables
    }
    return {
        k: searched.get(k, v)
        for k, v in variables.items()
        if searched.get(k, v) or k not in searched
    }


def _absolute(entries: Sequence[str]) -> str:
    """Return a search path of those entries that mean the same wherever a program works."""
    kept = [entry for entry in entries if os.path.isabs(entry) and not _is_working_folder(entry)]
    return os.pathsep.join(dict.fromkeys(kept))


def _is_working_folder(entry: str) -> bool:
    if not entry or not os.path.isabs(entry):
        # An import hook of an editable install has a name that is no folder.
        return entry in ("", ".") or Path(entry).is_dir()
    try:
        here = os.path.samefile(entry, os.curdir)
    except OSError:
        return False
    return here and not os.path.samefile(Path(__file__).parents[2], os.curdir)
