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
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, TypeGuard
from unittest import mock

from llmft.api.errors import DataError, EnvironmentFault, LlmftError, StageError, TrustError
from llmft.api.shown_text import on_one_line
from llmft.evaluation.intervals import Score, score_of
from llmft.system import fsio
from llmft.system.nearest import did_you_mean
from llmft.system.plain_files import read_bytes
from llmft.system.rng import isolated_rng
from llmft.system.time_limit import TimeUp
from llmft.system.trust import trusted_function

PACKAGE = "lm-eval"
RESULTS = "lm_eval.json"
"""What the harness found, in the form of its own results files."""
ANSWERS = "answers.jsonl"
"""What the model answered so far, from which an interrupted stage goes on."""
FEWSHOT_SEED, NUMPY_SEED, PYTHON_SEED = 1234, 1234, 0
"""The harness's own defaults, so that its few-shot examples are those of everybody's numbers."""
_LARGEST_TASK = 2**20
_LARGEST_ANSWERS = 2**31
_MOST_FILES = 20_000
_ASSUMED = 2048
_GENERATION = {
    "until", "max_gen_toks", "max_new_tokens", "max_length", "do_sample", "temperature", "top_p",
    "top_k", "min_p", "typical_p", "num_beams", "repetition_penalty", "no_repeat_ngram_size",
    "length_penalty", "early_stopping",
}  # fmt: skip
"""generation_kwargs that a task may have; others of `generate` fetch code or other models."""
OnAnswer = Callable[[int, int], None]


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
        for path in (*self.files.yaml, *self.files.data):
            with path.open("rb") as file:
                found[_shown(path)] = hashlib.file_digest(file, "sha256").hexdigest()
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


@dataclass(frozen=True)
class TaskFiles:
    """Files of a folder of tasks, of those that are asked for: settings, code, and rows.

    complete: whether none of the tasks asked for is one that comes with the harness.
    """

    yaml: tuple[Path, ...] = ()
    code: tuple[Path, ...] = ()
    data: tuple[Path, ...] = ()
    complete: bool = False


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


# --- the files of the user's own tasks -------------------------------------------------------


@dataclass
class _TaskFile:
    """A YAML file, looked at without making anything of it. functions: as `!function` has them."""

    path: Path
    values: dict[str, Any] = field(default_factory=dict)
    functions: list[str] = field(default_factory=list)


def task_files(include_path: str, tasks: Sequence[str]) -> TaskFiles:
    """Return the files that tasks of a folder are made of, those that they include among them.

    Nothing of them runs. Raises DataError (E107) where there is no such folder, TrustError (E607)
    where a task names a function of no file of its own.
    """
    folder = Path(include_path)
    if not folder.is_dir():
        what = f"there is no folder '{include_path}' with tasks"
        raise DataError("E107", what, fix="name a folder that has the tasks' YAML files")
    paths = sorted(folder.glob("**/*.yaml"), key=lambda path: path.as_posix())
    if len(paths) > _MOST_FILES:
        what = f"'{include_path}' has more than {_MOST_FILES:,} YAML files"
        raise DataError("E107", what, fix="name the folder that has the tasks")
    found = [_with_included(path, set()) for path in paths]
    by_name: dict[str, list[list[_TaskFile]]] = {}
    for parts in found:
        values = {key: value for part in parts for key, value in part.values.items()}
        for key in ("task", "group", "tag"):
            for name in _words(values.get(key)) if key == "tag" else [values.get(key)]:
                if isinstance(name, str):
                    by_name.setdefault(name, []).append(parts)
    waiting, seen = list(tasks), set[str]()
    used: dict[Path, _TaskFile] = {}
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for parts in by_name.get(name, ()):
            used |= {part.path: part for part in parts}
            for part in parts:
                waiting += [one for one in _words(part.values.get("task")) if one not in seen]
    code = {_code_file(one, part.path.parent) for part in used.values() for one in part.functions}
    data = {Path(word) for part in used.values() for word in _words(part.values.get("rows"))}
    return TaskFiles(
        tuple(sorted(used)),
        tuple(sorted(code)),
        tuple(sorted(path for path in data if path.is_file())),
        complete=seen <= by_name.keys(),
    )


def _with_included(path: Path, seen: set[Path]) -> list[_TaskFile]:
    """Return a file after those that it includes; files that cannot be read are the harness's."""
    real = path.resolve()
    if real in seen or not real.is_file():
        return []
    seen.add(real)
    read = _looked_at(path)
    parts = []
    for name in _words(read.values.get("include")):
        if not _is_installed(path.parent / name):
            parts += _with_included(path.parent / name, seen)
    return [*parts, read]


def _looked_at(path: Path) -> _TaskFile:
    """Return what a YAML file says of itself: names, functions, files of rows."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError
    from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode

    found = _TaskFile(path)
    try:
        root = YAML(typ="safe", pure=True).compose(read_bytes(path, _LARGEST_TASK))
    except (OSError, YAMLError, UnicodeDecodeError, RecursionError):
        return found  # the harness leaves it out, too
    waiting: list[tuple[Any, str]] = [(root, "")]
    seen: set[int] = set()
    rows: list[str] = []
    while waiting:
        node, under = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, ScalarNode):
            if str(node.tag).endswith("!function"):
                found.functions.append(str(node.value))
            elif under == "data_files":
                rows.append(str(node.value))
        elif isinstance(node, SequenceNode):
            waiting += [(part, under) for part in node.value]
        elif isinstance(node, MappingNode):
            for key, value in node.value:
                name = str(getattr(key, "value", ""))
                waiting.append((value, under or (name if name == "data_files" else "")))
                if node is root and name in ("task", "group", "tag", "include"):
                    found.values[name] = _names_in(value)
    found.values["rows"] = rows
    return found


def _names_in(node: Any) -> Any:
    """Return a node's text, or the texts of its parts: a group's tasks, or one's own blocks."""
    from ruamel.yaml.nodes import MappingNode

    if isinstance(node.value, str):
        return node.value
    names: list[str] = []
    for part in node.value:
        if isinstance(getattr(part, "value", None), str):
            names.append(part.value)
        elif isinstance(part, MappingNode):
            names += [
                name
                for key, value in part.value
                if getattr(key, "value", "") in ("task", "group")
                for name in _words(_names_in(value))
            ]
    return names


def _words(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())


def _code_file(function: str, folder: Path) -> Path:
    """Return the file beside a task that has a function; TrustError (E607) where there is none."""
    module = function.rpartition(".")[0]
    path = folder / f"{module.replace('.', '/')}.py"
    if not module or not path.is_file():
        what = f"a task in '{_shown(folder)}' names '{on_one_line(function)[:200]}', which is no"
        raise TrustError(
            "E607",
            f"{what} function of a file beside it, and a task never runs other code",
            fix="put the function into a file beside the task: !function file.function",
        )
    return path


def _is_installed(path: Path) -> bool:
    """Return whether a path is within the harness's own package."""
    import importlib.util

    spec = importlib.util.find_spec("lm_eval")
    places = spec.submodule_search_locations if spec else ()
    return any(path.resolve().is_relative_to(Path(place).resolve()) for place in places or ())


def _shown(path: Path) -> str:
    """Return a path as it is best typed from here."""
    with_here = os.path.relpath(path)
    return str(path) if with_here.startswith("..") else with_here


# --- the harness ------------------------------------------------------------------------------


def unknown_tasks(asked: Harness) -> list[tuple[int, str, str]]:
    """Return the tasks that the harness does not know: their place, what is wrong, and a fix."""
    version()
    with _guarded(), _failures("cannot be read"):
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
    from llmft.modeling.base_model import max_positions
    from llmft.modeling.decoding import dense_attention

    version()
    room = max_positions(model.config)
    virtual = getattr(model, "n_virtual", 0)
    longest = max_length or (room - virtual if room else None)
    kept = _Answers(answers, about, on_answer)
    with ExitStack() as stack:
        stack.callback(kept.close)
        stack.enter_context(isolated_rng())
        stack.enter_context(dense_attention(model))
        refused = stack.enter_context(_guarded())
        return _measured(asked, _lm(model, tokenizer, batch_size, longest, kept), kept, refused)


def follow(model: Any, batch_size: int, max_length: int | None) -> None:
    """Let a model without numbers compute the largest batch, for a plan; raises StageError."""
    import torch

    from llmft.modeling.decoding import dense_attention

    length = max_length or _ASSUMED
    with torch.no_grad(), dense_attention(model):
        device = next(model.parameters()).device
        model(torch.zeros(batch_size, length, dtype=torch.long, device=device))
    raise StageError("E303", "a plan scores nothing")


def _measured(asked: Harness, lm: Any, kept: _Answers, refused: Sequence[TrustError]) -> Measured:
    from lm_eval.evaluator import evaluate

    random.seed(PYTHON_SEED)
    with _failures("cannot be loaded"):
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
    with _failures("cannot be scored"):
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


@contextmanager
def _failures(what: str) -> Iterator[None]:
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
def _guarded() -> Iterator[list[TrustError]]:
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
        if _is_installed(base_dir):
            return own_function(qualified, base_dir)
        path = _code_file(qualified, base_dir)
        return trusted_function(_shown(path), qualified.rpartition(".")[2])

    def load_dataset(*given: Any, **named: Any) -> Any:
        _refuse_other_hosts([given, named])
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


def _refuse_other_hosts(given: Any) -> None:
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


class _Answers:
    """What the model answered, kept in a file of JSON lines; the harness's own cache is a pickle.

    about: what the model is; a file of another one is begun anew.
    """

    def __init__(self, path: Path | None, about: str, on_answer: OnAnswer) -> None:
        self.about = hashlib.sha256(about.encode()).hexdigest()
        self.on_answer = on_answer
        self.known: dict[str, Any] = {}
        self.asked = self.given = self.done = self.total = 0
        self.file = None
        if path is not None:
            if path.exists():
                self.known = self._read(path)
            if not self.known:
                path.unlink(missing_ok=True)
            self.file = fsio.open_to_append(path)
            if not self.known:
                self._write({"about": self.about})

    def _read(self, path: Path) -> dict[str, Any]:
        """Return the answers in the file, but for a line that a kill has torn."""
        lines = read_bytes(path, _LARGEST_ANSWERS).decode("utf-8", "replace").split("\n")
        if lines[0] != json.dumps({"about": self.about}):
            return {}
        found: dict[str, Any] = {}
        for line in lines[1:]:
            try:
                entry = json.loads(line)
                found[str(entry["key"])] = entry["answer"]
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
        return found

    def _write(self, entry: Mapping[str, Any]) -> None:
        if self.file is not None:
            self.file.write(json.dumps(entry) + "\n")
            self.file.flush()

    def close(self) -> None:
        """End the file."""
        if self.file is not None:
            self.file.close()

    def add_partial(self, kind: str, request: Any, answer: Any) -> None:
        """Keep an answer, as the harness tells its cache."""
        key = _key(kind, request)
        self.done = min(self.done + 1, self.total)
        self.on_answer(self.done, self.total)
        if key is not None and key not in self.known:
            self.asked += 1
            self.known[key] = answer
            self._write({"key": key, "answer": answer})

    def through(self, kind: str, requests: Sequence[Any], ask: Callable[[Any], Any]) -> list[Any]:
        """Return an answer to each request: one that is kept, or what `ask` gives of the others."""
        keys = [_key(kind, one.args) for one in requests]
        missing = [i for i, key in enumerate(keys) if key is None or key not in self.known]
        kept = {i: self.known[key] for i, key in enumerate(keys) if key in self.known}
        self.given += len(kept)
        self.done, self.total = len(kept), len(requests)
        self.on_answer(self.done, self.total)
        new = dict(
            zip(missing, ask([requests[i] for i in missing]) if missing else (), strict=True)
        )
        found = [new[i] if i in new else kept[i] for i in range(len(requests))]
        return [tuple(one) if isinstance(one, list) else one for one in found]


def _key(kind: str, request: Any) -> str | None:
    """Return what an answer is kept by; None where it is drawn, and so another one each time."""
    parts = list(request)
    if kind == "generate_until" and isinstance(parts[-1], Mapping) and _is_drawn(parts[-1]):
        return None
    return hashlib.sha256(json.dumps([kind, *parts], default=str).encode()).hexdigest()


def _is_drawn(settings: Mapping[str, Any]) -> bool:
    """Return whether an answer is drawn, as the harness's normalize_gen_kwargs has it."""
    stated = settings.get("do_sample")
    return bool(settings.get("temperature") if stated is None else stated)


def _lm(
    model: Any, tokenizer: Any, batch_size: int, max_length: int | None, answers: _Answers
) -> Any:
    """Return the harness's own model class around ours, which asks a request only once."""
    import copy

    from lm_eval.models.huggingface import HFLM

    class Ours(HFLM):  # type: ignore[misc]
        def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
            return answers.through(
                "loglikelihood", requests, lambda some: HFLM.loglikelihood(self, some)
            )

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
            return answers.through(
                "loglikelihood_rolling",
                requests,
                lambda some: HFLM.loglikelihood_rolling(self, some),
            )

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
            for one in requests:
                if strange := set(one.args[1]) - _GENERATION:
                    what = f"a task's generation_kwargs have '{on_one_line(min(strange))[:80]}'"
                    raise TrustError(
                        "E607", f"{what}, which no task may set", fix="take it out of the task"
                    )
            return answers.through(
                "generate_until", requests, lambda some: HFLM.generate_until(self, some)
            )

    # The harness ties the weights that it is given, and gives its tokenizer a token to pad with.
    with mock.patch.object(model, "tie_weights", create=True):
        made = Ours(
            pretrained=model,
            tokenizer=copy.deepcopy(tokenizer),
            backend="causal",
            batch_size=batch_size,
            max_length=max_length,
        )
    made.set_cache_hook(answers)
    return made
