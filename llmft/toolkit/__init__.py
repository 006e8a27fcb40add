"""Public building blocks for plugin authors. Importing this imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from llmft.api import Encoded
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
from llmft.data.columns import answers_of, asked_as, fields_of, fill, text_of
from llmft.data.conversation import (
    is_blank,
    messages_in,
    messages_of,
    tools_of,
    untrained,
    with_system,
    with_tools,
)
from llmft.data.pair_encoding import cut_at_start
from llmft.data.repeated_prompt import repeats_prompt, without_prompt
from llmft.data.splits import records_of_parts
from llmft.data.table_dataset import TableConfig, TableDataset
from llmft.data.tables import read_file, read_records
from llmft.evaluation.harness import Harness
from llmft.evaluation.intervals import corpus_values, differences_of, wilson
from llmft.modeling.tensor_file import load_tensors, save_tensors
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
    from llmft.modeling.divergence import Divergence
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
    "divergence",
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
    "linear",
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
    "with_tools",
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


def linear(x: torch.Tensor, W_OI: torch.Tensor, bias_O: torch.Tensor | None = None) -> torch.Tensor:
    """Return torch's `F.linear` of these, in the order that is faster for few rows on a CPU."""
    from llmft.modeling import few_rows

    return few_rows.linear(x, W_OI, bias_O)


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


def divergence(
    model: Any, other: Any, rows: Sequence[Encoded], beta: float = 0.5, temperature: float = 1.0
) -> Divergence:
    """Return how far two models' distributions are apart at each label; see `modeling.divergence`.

    The generalised Jensen-Shannon divergence, in nats; gradients flow through the first model.
    """
    from llmft.modeling import divergence as found

    return found.divergence(model, other, rows, beta, temperature)


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
    *,
    alike: bool = False,
) -> list[T]:
    """Return what `compute` gives for each part, in order; within `dealing_out` it is shared.

    Each process computes some of the parts, as one process would, and all have all results. Without
    several processes, or outside `dealing_out`, all are computed here. on_part: told how many are
    done. alike: every part takes equally many passes of the model, as batches whose loss is taken;
    answers of unknown length do not. It is asked under `train.shard_base`, where the processes have
    to compute the same passes: parts that are not alike are then computed by all of them.
    """
    from llmft.system import distributed

    return distributed.dealt(parts, compute, on_part, alike=alike)


def on_rank_zero(make: Callable[[], T]) -> T:
    """Return what `make` gives in the first of the processes; the others wait for it."""
    from llmft.system import distributed

    return distributed.on_rank_zero(make)


def without_dropout(model: Any) -> AbstractContextManager[int]:
    """Turn a model's dropout off for a while, in training too; gives how many layers had any."""
    from llmft.modeling import dropout

    return dropout.without_dropout(model)


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
