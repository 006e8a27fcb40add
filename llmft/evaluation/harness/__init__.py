"""Tasks of EleutherAI's lm-evaluation-harness on a model, computed by the harness's own code.

The harness reads tasks, makes prompts, and scores; the model is ours. Tasks that are installed with
it are code that the user installed. Those of a folder of the user's own are data: their templates
run in jinja2's sandbox, and a Python file that they name runs only under --trust.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import random
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from llmft.api.errors import EnvironmentFault, StageError, TrustError
from llmft.api.shown_text import on_one_line
from llmft.evaluation.harness.task_files import TaskFiles, shown, task_files
from llmft.evaluation.intervals import Score, score_of
from llmft.system.nearest import did_you_mean
from llmft.system.rng import isolated_rng

if TYPE_CHECKING:
    from llmft.evaluation.harness.answers import Answers, OnAnswer

PACKAGE = "lm-eval"
ANSWERS = "answers.jsonl"
"""What the model answered so far, from which an interrupted stage goes on."""
FEWSHOT_SEED, NUMPY_SEED, PYTHON_SEED = 1234, 1234, 0
"""The harness's own defaults, so that its few-shot examples are those of everybody's numbers."""
_ASSUMED = 2048


@dataclass(frozen=True)
class Harness:
    """Which tasks are asked, and how, in the harness's names.

    limit: documents of each task; below 1: that share of them. include_path: a folder of tasks of
    the user's own.
    """

    tasks: tuple[str, ...]
    num_fewshot: int | None = None
    limit: float | None = None
    apply_chat_template: bool = False
    fewshot_as_multiturn: bool = True
    system_instruction: str | None = None
    include_path: str | None = None

    @cached_property
    def files(self) -> TaskFiles:
        """The files that the tasks of include_path are made of; DataError (E107) if it is none."""
        return task_files(self.include_path, self.tasks) if self.include_path else TaskFiles()

    def reads(self) -> dict[str, str]:
        """Return the harness's version, and the SHA-256 of each file of the user's own tasks.

        Raises EnvironmentFault (E206) where the harness is not installed.
        """
        found = {PACKAGE: version()}
        for path in (*self.files.yaml, *self.files.code, *self.files.data):
            with path.open("rb") as file:
                found[shown(path)] = hashlib.file_digest(file, "sha256").hexdigest()
        return found


@dataclass(frozen=True)
class Measured:
    """What the harness found. scores: with 95 % intervals; metrics: with standard errors too.

    rows: of each document and filter, what was asked and answered, and its scores. results: the
    harness's own, as its results files have them. remarks: what a person should know.
    """

    metrics: Mapping[str, float]
    scores: Mapping[str, Score]
    rows: Sequence[Mapping[str, Any]]
    results: Mapping[str, Any]
    remarks: Sequence[str] = ()
    asked: int = 0
    kept: int = 0


def version() -> str:
    """Return the harness's version; EnvironmentFault (E206, E223) where there is none to use."""
    try:
        found = importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError as error:
        what = "lm-evaluation-harness, whose tasks are asked, is not installed"
        raise EnvironmentFault("E206", what, fix="pip install lm-eval") from error
    if tuple(int(part) for part in found.split(".")[:3] if part.isdecimal()) < (0, 4, 13):
        what = f"lm-evaluation-harness {found} reads tasks in another way than the one that is"
        raise EnvironmentFault(
            "E223", f"{what} known here", fix="pip install --upgrade lm-eval  # 0.4.13 or later"
        )
    return found


def unknown_tasks(asked: Harness) -> list[tuple[int, str, str]]:
    """Return the tasks that the harness does not know: their place, what is wrong, and a fix."""
    from llmft.evaluation.harness.guard import failures, guarded

    version()
    with guarded(), failures("cannot be read"):
        known = _manager(asked).all_tasks
    found = []
    for number, name in enumerate(asked.tasks):
        if name not in known:
            what = f"lm-evaluation-harness {version()} has no task '{on_one_line(name)[:80]}'"
            fix = did_you_mean(name, known) or "lm-eval ls tasks lists all; yours: include_path"
            found.append((number, what, fix))
    return found


def _manager(asked: Harness) -> Any:
    """Return what knows the tasks; reading all that come with the harness takes some seconds."""
    states = [path.stat() for path in asked.files.yaml]
    seen = tuple((state.st_mtime_ns, state.st_size) for state in states)
    return _manager_of(asked.include_path, asked.files, seen)


@lru_cache(maxsize=2)
def _manager_of(include_path: str | None, files: TaskFiles, seen: tuple[Any, ...]) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include_path, include_defaults=not files.complete)


def measure(
    asked: Harness,
    model: Any,
    tokenizer: Any,
    *,
    batch_size: int,
    max_length: int | None = None,
    answers: Path | None = None,
    about: str = "",
    on_answer: OnAnswer = lambda done, total: None,
) -> Measured:
    """Return what the harness's tasks find of a model, which must be frozen and on its device.

    tokenizer: with the chat template as trained. max_length: in tokens; default: the model's
    positions, without those of virtual tokens. answers: a file that keeps each answer at once, and
    gives those that it has of the same `about`, which must say what the model is.
    Raises EnvironmentFault (E206, E223, E224) where the harness or a task cannot be used,
    TrustError (E607) where one would run code, RecipeError or DataError of a trusted file.
    """
    from llmft.evaluation.harness.answers import Answers, asked_once
    from llmft.evaluation.harness.guard import guarded
    from llmft.modeling.base_model import max_positions
    from llmft.modeling.decoding import dense_attention

    version()
    room = max_positions(model.config)
    virtual = getattr(model, "n_virtual", 0)
    longest = max_length or (room - virtual if room else None)
    kept = Answers(answers, about, on_answer)
    with ExitStack() as stack:
        stack.callback(kept.close)
        stack.enter_context(isolated_rng())
        stack.enter_context(dense_attention(model))
        refused = stack.enter_context(guarded())
        return _measured(
            asked, asked_once(model, tokenizer, batch_size, longest, kept), kept, refused
        )


def follow(model: Any, batch_size: int, max_length: int | None) -> None:
    """Let a model without numbers compute the largest batch, for a plan; raises StageError."""
    import torch

    from llmft.modeling.decoding import dense_attention

    length = max_length or _ASSUMED
    with torch.no_grad(), dense_attention(model):
        device = next(model.parameters()).device
        model(torch.zeros(batch_size, length, dtype=torch.long, device=device))
    raise StageError("E303", "a plan scores nothing")


def _measured(asked: Harness, lm: Any, kept: Answers, refused: Sequence[TrustError]) -> Measured:
    from lm_eval.evaluator import evaluate

    from llmft.evaluation.harness.guard import failures

    random.seed(PYTHON_SEED)
    with failures("cannot be loaded"):
        import numpy
        import torch

        numpy.random.seed(NUMPY_SEED)
        torch.manual_seed(NUMPY_SEED)
        loaded = _manager(asked).load(list(asked.tasks))
    if refused:
        raise refused[0]
    remarks = []
    for name, task in loaded["tasks"].items():
        own = task.get_config("num_fewshot")
        if asked.num_fewshot is not None and own == 0 and asked.num_fewshot:
            remarks.append(f"{name}: its own num_fewshot, 0, stays as it is")
        elif asked.num_fewshot is not None or own is None:
            task.set_config(key="num_fewshot", value=asked.num_fewshot or 0)
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
    with failures("cannot be scored"):
        found = evaluate(
            lm=lm,
            task_dict=loaded,
            limit=asked.limit,
            apply_chat_template=asked.apply_chat_template,
            fewshot_as_multiturn=asked.fewshot_as_multiturn,
            system_instruction=asked.system_instruction,
        )
    samples = found.pop("samples", None) or {}
    if refused:
        raise refused[0]
    metrics, scores = _scores(found["results"], samples, found.get("n-samples", {}))
    if not metrics:
        what = f"lm-evaluation-harness has no score of {', '.join(asked.tasks)}"
        raise EnvironmentFault("E224", what, fix="look at the task's metric_list")
    results = {
        **json.loads(json.dumps(found, default=str)),
        "lm_eval_version": version(),
        "config": {
            "num_fewshot": asked.num_fewshot, "limit": asked.limit,
            "apply_chat_template": asked.apply_chat_template,
            "fewshot_as_multiturn": asked.fewshot_as_multiturn,
            "system_instruction": asked.system_instruction, "fewshot_seed": FEWSHOT_SEED,
        },
    }  # fmt: skip
    rows = [_row(name, sample) for name in sorted(samples) for sample in samples[name]]
    return Measured(metrics, scores, rows, results, remarks, kept.asked, kept.given)


def _row(task: str, sample: Mapping[str, Any]) -> dict[str, Any]:
    """Return a document of a task as a line of rows: what was asked, answered, and scored."""
    plain = json.loads(json.dumps(sample, default=str))
    scored = {name: plain[name] for name in plain["metrics"]}
    return {
        "task": task, "filter": plain["filter"], "doc_id": plain["doc_id"],
        "arguments": plain["arguments"], "target": plain["target"],
        "answers": plain["filtered_resps"], **scored, "doc_hash": plain["doc_hash"],
    }  # fmt: skip


def _scores(
    results: Mapping[str, Mapping[str, Any]],
    samples: Mapping[str, Sequence[Mapping[str, Any]]],
    counts: Mapping[str, Mapping[str, int]],
) -> tuple[dict[str, float], dict[str, Score]]:
    """Return each number of the harness by `<task>_<metric>`, and those with an interval.

    A metric that is the mean of its documents' values has the interval that such a metric has of
    our own; another one, and a group's, that of its standard error, where the harness tells one.
    """
    metrics: dict[str, float] = {}
    scores: dict[str, Score] = {}
    for task, told in results.items():
        for key, value in told.items():
            metric, comma, kind = key.partition(",")
            if not comma or metric.endswith("_stderr") or not _is_number(value):
                continue
            name = f"{task}_{metric}" + (f"_{kind}" if kind != "none" else "")
            metrics[name] = float(value)
            error = told.get(f"{metric}_stderr,{kind}")
            if _is_number(error):
                metrics[f"{name}_stderr"] = float(error)
            values = [one[metric] for one in samples.get(task, ()) if one.get("filter") == kind
                      and _is_number(one.get(metric))]  # fmt: skip
            if values and math.isclose(sum(values) / len(values), value, abs_tol=1e-12):
                scores[name] = score_of([float(one) for one in values])
                continue
            count = counts.get(task, {}).get("effective") or len(values)
            apart = 1.959964 * float(error) if _is_number(error) else None
            scores[name] = {
                "value": float(value), "n": count,
                "low": None if apart is None else float(value) - apart,
                "high": None if apart is None else float(value) + apart,
            }  # fmt: skip
    return metrics, scores


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)
