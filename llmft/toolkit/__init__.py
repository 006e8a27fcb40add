"""Public building blocks for plugin authors. Importing this imports nothing heavy."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from llmft.api import DataError, Encoded
from llmft.api.shown_text import escaped
from llmft.api.text_metrics import (
    exact_match,
    f1,
    final_number,
    first_line,
    last_number,
    normalize_answer,
    shown_score,
)
from llmft.data.conversation import (
    is_blank,
    messages_in,
    messages_of,
    tools_of,
    untrained,
    with_system,
)
from llmft.data.pair_encoding import cut_at_start
from llmft.data.splits import records_of_parts
from llmft.data.table_dataset import TableConfig, TableDataset
from llmft.data.tables import read_file, read_records
from llmft.evaluation.harness import Harness
from llmft.evaluation.intervals import corpus_values, differences_of, wilson
from llmft.ranking import (
    RATINGS,
    Ratings,
    Sample,
    combine,
    judged,
    read_ratings,
    read_samples,
    remaining,
)
from llmft.system.fsio import open_to_append, write_json, write_jsonl, write_text
from llmft.system.processes import start_python
from llmft.system.terminal import terminal_width, wrapped
from llmft.system.time_limit import TimeUp, time_limit
from llmft.system.trust import call_trusted, trusted_function, trusted_items

if TYPE_CHECKING:
    import torch

    from llmft.api import StageContext
    from llmft.evaluation.harness import Measured
    from llmft.modeling.forward import LabelNll
    from llmft.modeling.token_stats import TokenStats

__all__ = [
    "RATINGS",
    "Harness",
    "Ratings",
    "Sample",
    "TableConfig",
    "TableDataset",
    "TimeUp",
    "add_score_head",
    "add_value_head",
    "all_reduce_sum",
    "answers_of",
    "asked_as",
    "call_trusted",
    "class_logits",
    "class_names",
    "combine",
    "corpus_values",
    "cut_at_start",
    "dealing_out",
    "dealt",
    "differences_of",
    "escaped",
    "exact_match",
    "f1",
    "fields_of",
    "fill",
    "final_number",
    "first_line",
    "harness_scores",
    "is_blank",
    "judged",
    "label_nll",
    "last_hidden",
    "last_number",
    "load_score_head",
    "load_tensors",
    "load_value_head",
    "messages_in",
    "messages_of",
    "new_token_ids",
    "normalize_answer",
    "on_rank_zero",
    "open_to_append",
    "read_file",
    "read_ratings",
    "read_records",
    "read_samples",
    "records_of_parts",
    "remaining",
    "repeats_prompt",
    "rewards",
    "router_coefficient",
    "router_loss",
    "save_classifier",
    "save_score_head",
    "save_tensors",
    "save_value_head",
    "shown_score",
    "start_python",
    "tensor_like",
    "terminal_width",
    "text_of",
    "time_limit",
    "token_ids",
    "token_stats",
    "tools_of",
    "trusted_function",
    "trusted_items",
    "unknown_harness_tasks",
    "untrained",
    "value_parameters",
    "values",
    "why_no_classifier",
    "wilson",
    "with_system",
    "without_dropout",
    "without_prompt",
    "wrapped",
    "write_json",
    "write_jsonl",
    "write_text",
]  # fmt: skip

P = TypeVar("P")
T = TypeVar("T")
Shared = Sequence[tuple[int, int]]

_AS_CHAT = "messages go through the chat template: data.chat: true, or data.method: chat"
_FIELD = re.compile(r"\{\{|\}\}|\{([^{}]*?)(\??)\}")


def label_nll(
    model: Any,
    rows: Sequence[Encoded],
    shared: Shared | None = None,
    *,
    label_smoothing: float = 0.0,
) -> LabelNll:
    """Return the negative log-likelihood of every label in a batch; see `llmft.modeling.forward`.

    shared: for each row (j, n): its first n tokens are those of the earlier row j. Only where
        `StageContext.shares_prompts`.
    """
    from llmft.modeling import forward

    return forward.label_nll(model, rows, shared, label_smoothing=label_smoothing)


def tensor_like(numbers: Sequence[Any] | torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return numbers, lists of them or a CPU's tensor on another one's device, and of its dtype.

    Unlike `Tensor.new_tensor`, it does not let the host wait for a GPU.
    """
    from llmft.modeling import segments

    return segments.tensor_like(numbers, like)


def router_coefficient(model: Any, *, always: bool = False) -> float | None:
    """Return the weight that a mixture of experts gives its routers' loss; None for other models.

    It is `router_aux_loss_coef` of the model's config where that has `output_router_logits: true`,
    as in transformers, or `always`; else 0.
    """
    from llmft.modeling import router_loss

    return router_loss.own_coefficient(model, always=always)


def router_loss(model: Any) -> AbstractContextManager[list[torch.Tensor]]:
    """Collect the routers' load-balancing loss of each forward pass in the block, one number each.

    model: one that has a `router_coefficient`.
    """
    from llmft.modeling import router_loss

    return router_loss.router_loss(model)


def last_hidden(model: Any, rows: Sequence[Encoded], shared: Shared | None = None) -> torch.Tensor:
    """Return what the output layer reads at each row's last token, shape (B, D)."""
    from llmft.modeling import forward

    return forward.last_hidden(model, rows, shared)


def add_score_head(model: Any, outputs: int = 1, std: float | None = None) -> None:
    """Add a trainable head to a model, for `Alignment.extend`; it is read at the last token.

    outputs: one for a reward model, else one for each class. std: of its first weights; default:
    that of Stiennon et al. (2020).
    """
    from llmft.modeling import heads

    heads.add_score_head(model, outputs, std)


def save_score_head(model: Any, folder: Path) -> None:
    """Write a model's scalar head into a folder, for `Alignment.save`."""
    from llmft.modeling import heads

    heads.save_score_head(model, folder)


def save_classifier(
    model: Any, folder: Path, names: Sequence[str], problem_type: str, pad_token_id: int | None
) -> None:
    """Write a classifier's head and config, as transformers loads them, for `Alignment.save`."""
    from llmft.modeling import heads

    heads.save_classifier(model, folder, names, problem_type, pad_token_id)


def class_names(folder: Path) -> list[str]:
    """Return the names of the classes that `save_classifier` wrote into a folder."""
    from llmft.modeling import heads

    return heads.class_names(folder)


def class_logits(model: Any, rows: Sequence[Encoded]) -> torch.Tensor:
    """Return the logits of each row's classes, at its last token, shape (B, C), float32."""
    from llmft.modeling import heads

    return heads.class_logits(model, rows)


def why_no_classifier(config: Any) -> str:
    """Return why transformers has no classifier of this kind for a model's config; '': it has."""
    from llmft.modeling import heads

    return heads.why_no_classifier(config)


def load_score_head(model: Any, folder: Path) -> None:
    """Add the head that was saved in a folder, for `Alignment.load`."""
    from llmft.modeling import heads

    heads.load_score_head(model, folder)


def rewards(model: Any, rows: Sequence[Encoded], shared: Shared | None = None) -> torch.Tensor:
    """Return the reward of each row by a model with a scalar head, shape (B,), float32."""
    from llmft.modeling import heads

    return heads.rewards(model, rows, shared)


def token_stats(
    model: Any,
    rows: Sequence[Encoded],
    temperature: float = 1.0,
    *,
    entropy_gradient: bool = False,
    shared: Shared | None = None,
    nuclei: Sequence[torch.Tensor] | None = None,
) -> TokenStats:
    """Return log-likelihood, entropy and state of every label; see `llmft.modeling.token_stats`."""
    from llmft.modeling import token_stats as stats

    return stats.token_stats(
        model, rows, temperature, entropy_gradient=entropy_gradient, shared=shared, nuclei=nuclei
    )


def add_value_head(model: Any) -> None:
    """Add a trainable scalar head that is read at every token, for `Alignment.extend`."""
    from llmft.modeling import heads

    heads.add_value_head(model)


def value_parameters(model: Any) -> list[torch.nn.Parameter]:
    """Return the parameters of a model's value head, for `Alignment.parameter_groups`."""
    from llmft.modeling import heads

    return heads.value_parameters(model)


def save_value_head(model: Any, folder: Path) -> None:
    """Write a model's value head into a folder, for `Alignment.save`."""
    from llmft.modeling import heads

    heads.save_value_head(model, folder)


def load_value_head(model: Any, folder: Path) -> None:
    """Add the value head that was saved in a folder, for `Alignment.load`."""
    from llmft.modeling import heads

    heads.load_value_head(model, folder)


def values(model: Any, hidden_ND: torch.Tensor) -> torch.Tensor:
    """Return the value head's answer to states as `token_stats` gives them, shape (N,), float32."""
    from llmft.modeling import heads

    return heads.values(model, hidden_ND)


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Return the sum of a tensor over all processes that train together."""
    from llmft.system import distributed

    return distributed.all_reduce_sum(tensor)


def dealing_out() -> AbstractContextManager[None]:
    """Return a context in which `dealt` shares work among the processes that train together.

    All of them have to enter it and call `dealt` alike, as they do in `Alignment.train`. An
    alignment's `evaluate` is within it already.
    """
    from llmft.system import distributed

    return distributed.dealing_out()


def dealt(
    parts: Sequence[P],
    compute: Callable[[P], T],
    on_part: Callable[[int], None] = lambda done: None,
) -> list[T]:
    """Return what `compute` gives for each part, in order; within `dealing_out` it is shared.

    Each process computes some of the parts, as one process would, and all have all results. Without
    several processes, or outside `dealing_out`, all are computed here. on_part: told how many are
    done.
    """
    from llmft.system import distributed

    return distributed.dealt(parts, compute, on_part)


def on_rank_zero(make: Callable[[], T]) -> T:
    """Return what `make` gives in the first of the processes; the others wait for it."""
    from llmft.system import distributed

    return distributed.on_rank_zero(make)


def without_dropout(model: Any) -> AbstractContextManager[int]:
    """Turn a model's dropout off for a while, in training too; gives how many layers had any."""
    from llmft.modeling import dropout

    return dropout.without_dropout(model)


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], key: str) -> None:
    """Write tensors whole into a safetensors file; `key` says what they were computed from."""
    from safetensors.torch import save

    from llmft.system.fsio import write_bytes

    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, save(whole, {"key": key, "sha256": _digest(whole)}))


def load_tensors(path: Path, key: str) -> dict[str, torch.Tensor] | None:
    """Return the tensors of a file, or None where it is not there, damaged or has another key."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            told = file.metadata() or {}
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except SafetensorError:
        return None
    return found if (told.get("key"), told.get("sha256")) == (key, _digest(found)) else None


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return a SHA-256 over the names and bytes of tensors on the CPU."""
    import hashlib

    import torch

    hasher = hashlib.sha256()
    for name in sorted(tensors):
        hasher.update(f"{name} {tuple(tensors[name].shape)}".encode())
        hasher.update(tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()


def harness_scores(asked: Harness, context: StageContext) -> Measured:
    """Return what tasks of lm-evaluation-harness find of a stage's model; see `evaluation.harness`.

    Its answers are kept in the stage's folder, and an interrupted stage goes on from them. A plan
    follows one pass of the largest batch instead, and ends with StageError.
    """
    from llmft.evaluation import harness

    model, train = context.models.model, context.train
    size, longest = train.per_device_eval_batch_size, context.data.max_length
    if context.planned:
        harness.follow(model, size, longest)
    return harness.measure(
        asked,
        model,
        context.models.tokenizer,
        batch_size=size,
        max_length=longest,
        answers=context.folder / harness.ANSWERS,
        about=context.fingerprint,
        on_answer=lambda done, total: context.log.progress("lm_eval", done, total),
    )


def unknown_harness_tasks(asked: Harness) -> list[tuple[int, str, str]]:
    """Return which tasks the harness does not know: their place, what is wrong, a suggested fix."""
    from llmft.evaluation import harness

    return harness.unknown_tasks(asked)


def new_token_ids(model: Any) -> tuple[int, ...]:
    """Return the ids of the tokens that the recipe adds to the tokenizer; () for most.

    model: a base model, also on torch's meta device, or one with an adapter attached.
    """
    from llmft.modeling import new_tokens

    return new_tokens.new_token_ids(model)


def token_ids(path: str, text: str) -> list[int]:
    """Return a text's ids by the tokenizer of a folder or a hub id, with its special tokens.

    It is looked through and bounded as a recipe's model is. Raises EnvironmentFault where it cannot
    be loaded or takes too long, and TrustError where it would run code.
    """
    from llmft.api.model_settings import ModelSource
    from llmft.data.bounded_tokens import BoundedTokens
    from llmft.modeling.base_model import BaseModel

    return BoundedTokens(BaseModel(ModelSource(path=path)).tokenizer).ids(text)


def text_of(record: Mapping[str, Any], column: str, origin: str) -> str:
    """Return a record's text in a column, or by a template such as 'Question: {question}'.

    Raises DataError where the column is missing or holds no text, or messages written as text; in
    a template these are text.
    """
    if "{" in column:
        return fill(column, record, origin)
    value = record.get(column)
    if isinstance(value, str) and messages_in(value, origin):
        raise DataError(
            "E101",
            f"{origin}: the column '{column}' holds messages, not text",
            fix=f"{_AS_CHAT}; or write '{{{column}}}' if they are meant as text",
        )
    return _text_of(record, column, origin)


def _text_of(record: Mapping[str, Any], column: str, origin: str) -> str:
    if column not in record:
        called = next((name for name in record if str(name).strip() == column), None)
        there = ", ".join(str(name) if name == str(name).strip() else repr(name) for name in record)
        raise DataError(
            "E101",
            f"{origin}: no column '{column}' (there is: {there})",
            fix=f"map the right one under data.columns in place of '{column}'"
            if called is None
            else f"take the blanks around '{column}' out of the file's names",
        )
    value = record[column]
    if isinstance(value, float) and math.isnan(value):
        value = None  # as pandas writes what is missing
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        kind = "empty" if value is None else f"a {type(value).__name__}"
        messages = isinstance(value, list) and any(isinstance(item, Mapping) for item in value)
        fix = "write what is meant as text, such as yes and no" if isinstance(value, bool) else ""
        what = f"{origin}: the column '{column}' is {kind}, not text"
        raise DataError("E101", what, fix=_AS_CHAT if messages else fix)
    if isinstance(value, float):
        _refuse_spoilt(value, column, origin)
    return str(value)


def _refuse_spoilt(value: float, column: str, origin: str) -> None:
    if math.isinf(value):
        raise DataError("E101", f"{origin}: the column '{column}' is {value}, not text")
    if value.is_integer():
        raise DataError(
            "E101",
            f"{origin}: the column '{column}' is the number {value}, and would be written so;"
            " pandas makes such numbers of whole ones in a column with gaps",
            fix="write whole numbers, or text (pandas: .astype('Int64') or .astype('string'))",
        )


def answers_of(record: Mapping[str, Any], column: str | None, origin: str) -> tuple[str, ...]:
    """Return the right answers in a column, a text or a list of texts; none without a column.

    Raises DataError where they are all empty, as an answer never is.
    """
    if column is None:
        return ()
    value = record.get(column)
    if isinstance(value, list):
        found = tuple(_text_of({column: item}, column, origin) for item in value)
    else:
        found = (text_of(record, column, origin),)
    right = tuple(text for text in found if not is_blank(text))
    if found and not right:
        raise DataError(
            "E101",
            f"{origin}: the column '{column}' holds no right answer",
            fix="fill it, or leave such rows out: on_bad_row: skip",
        )
    return right


def fields_of(column: str) -> list[str]:
    """Return the record's fields that a column, or a template of {columns}, reads."""
    if "{" not in column:
        return [column]
    return [match[1] for match in _FIELD.finditer(column) if match[1]]


def asked_as(column: str, question: str) -> str:
    """Return a person's question as a prompt's column or template puts it.

    Raises DataError where a template reads several columns, which one question cannot fill.
    """
    if "{" not in column:
        return question
    matches = [match for match in _FIELD.finditer(column) if match[1]]
    needed = {match[1] for match in matches if not match[2]} or {match[1] for match in matches}
    if len(needed) != 1:
        raise DataError(
            "E101",
            f"the prompt template reads {len(needed)} columns ({', '.join(sorted(needed))}), and a"
            " question is one text",
            fix="write the whole prompt as it was trained on, and ask it with --raw",
        )
    return fill(column, dict.fromkeys(needed, question), "question")


def repeats_prompt(prompt: Any, answers: Sequence[str]) -> bool:
    """Return whether each answer begins with the whole prompt, a text of several words."""
    return (
        isinstance(prompt, str)
        and len(prompt.split()) > 1
        and all(answer.startswith(prompt.rstrip()) for answer in answers)
    )


def without_prompt(
    prompt: Any, answers: Sequence[str], rule: str | None, origin: str
) -> tuple[str, ...]:
    """Return answers without the prompt that they begin with, or as they are.

    rule: the recipe's `repeated_prompt`. Raises DataError where they do and it says nothing.
    """
    if rule == "keep" or not repeats_prompt(prompt, answers):
        return tuple(answers)
    if rule == "strip":
        return tuple(answer[len(prompt.rstrip()) :] for answer in answers)
    what = "the completion begins" if len(answers) == 1 else "both answers begin"
    raise DataError(
        "E101",
        f"{origin}: {what} with the prompt, which would be there twice",
        fix="write data.repeated_prompt: strip to take it off, or keep if it is meant",
    )


def fill(template: str, record: Mapping[str, Any], origin: str) -> str:
    """Return the template with each {field} replaced by the record's; {{ and }} are braces.

    A field that is written {field?} may be empty or absent in a record; it then gives no text.
    """

    def one(match: re.Match[str]) -> str:
        whole, name, optional = match.group(0), match.group(1), match.group(2)
        if whole in ("{{", "}}"):
            return whole[0]
        value = record.get(name)
        absent = value is None or (isinstance(value, float) and math.isnan(value))
        if absent and optional:
            return ""
        try:
            return _text_of(record, name, origin)
        except DataError as error:
            if not absent:
                raise
            fix = f"write {{{name}?}} in the template if it may be empty or absent"
            raise DataError("E101", error.faults[0].what, fix=fix) from error

    return _FIELD.sub(one, template)
