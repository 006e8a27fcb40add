"""Who is to blame for an error that no one foresaw: the machine, or somebody else's plugin."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from llmft import __version__
from llmft.api.errors import EnvironmentFault, LlmftError, PluginError, RecipeError
from llmft.cli.commands import crash
from llmft.registry.registry import Record, Registry
from llmft.registry.return_checks import AUTHOR

OURS = "llmft"
_PATH = "correct the path"


def put_to_its_cause(error: BaseException, command: str) -> LlmftError | None:
    """Return an error of no one's foresight as one that names who must act; None: it is our bug.

    A lack of memory is the machine's. What a plugin raised, or what it called, is that plugin's.
    Where the code that failed is ours, or a library that we called, it stays a bug of ours.
    """
    if refused := _no_path(error):
        return refused
    from llmft.training.guard import is_out_of_memory

    if is_out_of_memory(error):  # in a step, the loop has told it better
        said = (str(error).strip() or "Python has no memory left").splitlines()[0]
        return EnvironmentFault(
            "E205",
            f"out of memory outside a training step: {said[:200]}",
            fix="lower train.per_device_eval_batch_size, store the model in 4 bits, or see what"
            " 'llmft plan' says",
        )
    name = _blamed(error, registry := Registry.discover())
    if not name:
        return None
    report = crash.write_report(error, command, getattr(error, "run_folder", None))
    said = crash.redacted(f"{name} failed: {type(error).__name__}: {error}").splitlines()[0]
    said += _line_of(error.__traceback__, registry)
    saved = ", and what was saved before is intact" if command == "run" else ""
    return PluginError("E506", said, fix=f"{AUTHOR}; the traceback is in '{report}'{saved}")


def _no_path(error: BaseException) -> LlmftError | None:
    """Return the error of a path that no system takes, wherever it was used; None for others."""
    if isinstance(error, ValueError) and str(error) == "embedded null byte":
        return RecipeError("E090", "a path holds a NUL (U+0000)", fix=_PATH)
    if isinstance(error, RuntimeError) and str(error).startswith("Could not determine home"):
        return RecipeError("E090", "a path begins with ~, and no user is called so", fix=_PATH)
    if isinstance(error, OSError) and error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
        named = f"'{str(error.filename)[:80]}'" if error.filename else "a path"
        return RecipeError("E090", f"{named}: {str(error.strerror).lower()}", fix=_PATH)
    return None


def _blamed(error: BaseException, registry: Registry) -> str:
    """Return the plugin in whose code, or in what it called, the error was raised; '' for none."""
    theirs = [r for r in registry.records(load=False) if r.distribution != OURS]
    modules = _modules(error.__traceback__)
    for number, module in enumerate(modules):
        top = module.partition(".")[0]
        if found := [r for r in theirs if r.module.partition(".")[0] == top]:
            return _named(_nearest(found, modules[number:]))
        if top == OURS or top.startswith(f"{OURS}_"):
            return ""
    return ""


def _line_of(trace: TracebackType | None, registry: Registry) -> str:
    """Return the last line of a plugin's that an error passed through, as ` (file.py:12)`."""
    records = registry.records(load=False)
    tops = {r.module.partition(".")[0] for r in records if r.distribution != OURS}
    said = ""
    while trace:
        top = str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
        if top in tops:
            said = f" ({Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno})"
        trace = trace.tb_next
    return said


def _nearest(records: list[Record], modules: list[str]) -> list[Record]:
    """Return those of a package's methods in whose own module the error passed, else all."""
    for module in modules:
        own = [r for r in records if module == r.module or module.startswith(f"{r.module}.")]
        if own:
            return own
    return records


def _named(records: list[Record]) -> str:
    first = records[0]
    names = " or ".join(f"the {record.kind} '{record.method}'" for record in records)
    return f"{names} ({first.distribution} {first.version}, with llmft {__version__})"


def _modules(trace: TracebackType | None) -> list[str]:
    """Return the modules that an error passed through, the one that raised it first."""
    return list(_outside_in(trace))[::-1]


def _outside_in(trace: TracebackType | None) -> Iterator[str]:
    while trace:
        yield str(trace.tb_frame.f_globals.get("__name__", ""))
        trace = trace.tb_next
