"""Who is to blame where a run fails: a plugin of somebody else's, by its distribution."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from llmft import __version__
from llmft.commands import crash
from llmft.errors import EnvironmentFault, LlmftError, PluginError
from llmft.registry import Registry

OURS = "llmft"


@contextmanager
def blaming(registry: Registry, command: str) -> Iterator[None]:
    """Turn an error that no one foresaw, and that a plugin raised, into one that names the plugin.

    A lack of memory is the machine's. Where the code that failed is ours, or a library that we
    called, it stays a bug of ours.
    """
    try:
        yield
    except LlmftError:
        raise
    except Exception as error:
        from llmft.training.guard import is_out_of_memory

        if is_out_of_memory(error):  # in a step, the loop has told it better
            said = (str(error).strip() or "Python has no memory left").splitlines()[0]
            raise EnvironmentFault(
                "E205",
                f"out of memory outside of a training step: {said[:200]}",
                fix="lower train.per_device_eval_batch_size, store the model in 4 bits, or see what"
                " 'llmft plan' says",
            ) from error
        name = _blamed(error, registry)
        if not name:
            raise
        report = crash.write_report(error, command, getattr(error, "run_folder", None))
        raise PluginError(
            "E506",
            crash.redacted(f"{name} failed: {type(error).__name__}: {error}").splitlines()[0],
            fix=f"report it to the plugin's author; the traceback is in '{report}', and what was"
            " saved before is intact",
        ) from error


def _blamed(error: BaseException, registry: Registry) -> str:
    """Return the plugin in whose code, or in what it called, the error was raised; '' for none."""
    packages = {
        record.module.partition(".")[0]: record
        for record in registry.records(load=False)
        if record.distribution != OURS
    }
    for module in reversed(_modules(error.__traceback__)):
        top = module.partition(".")[0]
        if record := packages.get(top):
            who = f"{record.distribution} {record.version}"
            return f"the {record.kind} '{record.method}' ({who}, with llmft {__version__})"
        if top == OURS or top.startswith(f"{OURS}_"):
            return ""
    return ""


def _modules(trace: TracebackType | None) -> list[str]:
    names = []
    while trace:
        names.append(str(trace.tb_frame.f_globals.get("__name__", "")))
        trace = trace.tb_next
    return names
