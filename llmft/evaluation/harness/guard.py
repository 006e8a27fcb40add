"""What the harness may not do here: run code but its own, and end in an error of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from llmft.api.errors import EnvironmentFault, LlmftError, TrustError
from llmft.api.shown_text import on_one_line
from llmft.evaluation.harness.task_files import code_file, is_installed, shown
from llmft.system.time_limit import TimeUp
from llmft.system.trust import trusted_function


@contextmanager
def failures(what: str) -> Iterator[None]:
    """Turn what the harness raises into one error."""
    from jinja2.exceptions import SecurityError

    try:
        yield
    except (LlmftError, TimeUp, MemoryError):
        raise
    except SecurityError as error:
        raise TrustError(
            "E607",
            f"a task's template reaches for code: {on_one_line(str(error))[:300]}",
            fix="take it out of the task",
        ) from error
    except Exception as error:
        from torch import OutOfMemoryError

        if isinstance(error, OutOfMemoryError):
            raise
        said = on_one_line(str(error))[:400]
        if "marked as unsafe" in said:
            what = "a task runs what a model writes as code, which never happens here"
            raise TrustError(
                "E607", what, fix="leave it out, or run lm_eval in a sandbox"
            ) from error
        fix = "its data are on the hub: run it online once" if _is_offline(error) else ""
        said = f"{type(error).__name__}: {said}"
        raise EnvironmentFault(
            "E224", f"a task of lm-evaluation-harness {what}: {said}", fix=fix
        ) from error


def _is_offline(error: BaseException) -> bool:
    said = f"{type(error).__name__} {error}"
    words = ("Offline", "offline", "ConnectionError", "reach", "Connect", "cannot be found locally")
    return any(word in said for word in words)


@contextmanager
def guarded() -> Iterator[list[TrustError]]:
    """Let the harness run no code but its own and what the command line trusts.

    Gives what was refused where the harness goes on without it.
    """
    import datasets
    import evaluate
    from jinja2 import BaseLoader, StrictUndefined
    from jinja2.sandbox import SandboxedEnvironment
    from lm_eval import utils
    from lm_eval.tasks import _yaml_loader

    own_function, own_load = _yaml_loader._import_func_in_yml, datasets.load_dataset
    sandbox = SandboxedEnvironment(
        loader=BaseLoader(), undefined=StrictUndefined,
        keep_trailing_newline=utils.env.keep_trailing_newline,
    )  # fmt: skip
    sandbox.filters.update(utils.env.filters)

    def function(qualified: str, base_dir: Path) -> Any:
        if is_installed(base_dir):
            return own_function(qualified, base_dir)
        path = code_file(qualified, base_dir)
        return trusted_function(shown(path), qualified.rpartition(".")[2])

    def load_dataset(*given: Any, **named: Any) -> Any:
        refuse_other_hosts([given, named])
        return own_load(*given, **named)

    def load_metric(path: Any = "", *_: Any, **__: Any) -> Any:
        what = f"a task's metric '{on_one_line(str(path))[:80]}' is code on the hub"
        refused.append(
            TrustError("E607", f"{what}, which never runs here", fix="leave the task out")
        )
        raise refused[0]

    refused: list[TrustError] = []
    with ExitStack() as stack:
        for place, name, new in (
            (_yaml_loader, "_import_func_in_yml", function),
            (utils, "env", sandbox),
            (datasets, "load_dataset", load_dataset),
            (evaluate, "load", load_metric),
        ):
            stack.enter_context(mock.patch.object(place, name, new))
        yield refused


def refuse_other_hosts(given: Any) -> None:
    """Raise TrustError (E607) where rows come from another host than the hub, or run code."""
    waiting = [given]
    while waiting:
        part = waiting.pop()
        if isinstance(part, str) and "://" in part and not part.startswith("hf://"):
            what = f"a task reads its rows from '{on_one_line(part)[:200]}', which is not the hub"
            raise TrustError("E607", what, fix="download the file, and name it under data_files")
        if isinstance(part, Mapping):
            if part.get("trust_remote_code"):
                what = "a task's rows are made by code on the hub, which never runs here"
                raise TrustError("E607", what, fix="leave the task out")
            waiting += part.values()
        elif isinstance(part, list | tuple):
            waiting += part
