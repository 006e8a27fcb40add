"""How a stage is judged: the loss of held-out rows, and the answers the model gives to them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from llmft.api import (
    ChatRow,
    CompletionRow,
    Dataset,
    Encoded,
    Metric,
    PreferenceRow,
    Prompt,
    PromptRow,
    Row,
    UnpairedRow,
)
from llmft.api.errors import DataError
from llmft.data.encoding import answers_of
from llmft.data.stage_rows import Rows, equal_shares
from llmft.evaluation.intervals import ratio_values
from llmft.modeling.forward import label_nll
from llmft.recipes.sources import scored_as
from llmft.registry.return_checks import metric_of
from llmft.system import distributed


@dataclass
class Scores:
    """Metrics, and the answers they were computed from.

    values: of a metric that is the mean over rows, the value of each.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    values: dict[str, list[float]] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class RowLosses:
    """The losses of rows, in nats: each row's sum over its label tokens, and how many those are.

    mean: over all label tokens.
    """

    sums: Sequence[float]
    counts: Sequence[int]
    mean: float

    def values(self) -> list[float]:
        """Return pseudo-values of the rows, whose mean is `mean`."""
        return ratio_values(self.sums, [float(count) for count in self.counts])

    def of(self, rows: Sequence[int]) -> RowLosses:
        """Return the losses of some of the rows, by number."""
        sums, counts = [self.sums[n] for n in rows], [self.counts[n] for n in rows]
        return RowLosses(sums, counts, math.fsum(sums) / sum(counts))


def mean_loss(
    model: Any,
    rows: Sequence[Encoded],
    batch_size: int,
    on_batch: Callable[[int, int], None] = lambda *_: None,
) -> float:
    """Return the mean negative log-likelihood of the rows' label tokens, in nats."""
    return row_losses(model, rows, batch_size, on_batch).mean


def row_losses(
    model: Any,
    rows: Sequence[Encoded],
    batch_size: int,
    on_batch: Callable[[int, int], None] = lambda *_: None,
) -> RowLosses:
    """Return the loss of each row, and their mean over all label tokens."""

    def losses(some: Sequence[Encoded]) -> tuple[float, int, list[float]]:
        found = label_nll(model, some)
        nll = found.nll_N.double()
        by_row = nll.new_zeros(len(some)).index_add(0, found.row_N, nll).tolist()
        return float(nll.sum()), len(nll), by_row

    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            found = distributed.dealt(
                batches, losses, lambda done: on_batch(min(done * batch_size, len(rows)), len(rows))
            )
    finally:
        model.train(training)
    total, count = 0.0, 0
    for part, tokens, _ in found:  # one after another, as one process adds them up
        total, count = total + part, count + tokens
    sums = [value for _, _, by_row in found for value in by_row]
    return RowLosses(sums, [row.n_labels for row in rows], total / count)


def as_answered(rows: Sequence[Row]) -> list[Row]:
    """Return rows whose loss can be taken: of a preference, that of the chosen answer.

    Of unpaired rows, that of the good ones; raises DataError where none of them is good.
    """
    good = [row for row in rows if not isinstance(row, UnpairedRow) or row.label]
    if rows and not good:
        raise DataError(
            "E105",
            "no row to score on has a good answer, whose loss could be taken",
            fix="score without it: evaluate.metrics: []",
        )
    return [
        CompletionRow(row.prompt, row.chosen, row.answers, row.origin)
        if isinstance(row, PreferenceRow)
        else answers_of(row)[0]
        if isinstance(row, UnpairedRow)
        else row
        for row in good
    ]


def perplexity(loss: float) -> float:
    """Return e to the mean loss, or the largest float where that overflows."""
    return math.exp(min(loss, 709.0))


def loss_scores(metrics: Sequence[str], losses: RowLosses, source: str = "") -> Scores:
    """Return the loss and the perplexity, those of them that are asked. source: whose; '': all."""
    loss, of_loss = losses.mean, losses.values()
    surprise = perplexity(loss)
    values = {
        "loss": (loss, of_loss),
        "perplexity": (surprise, [surprise * (1 + value - loss) for value in of_loss]),
    }
    found = Scores()
    for name in metrics:
        if name in values:
            called = scored_as(source, name) if source else name
            found.metrics[called], found.values[called] = values[name]
    return found


def score_answers(
    rows: Sequence[Row],
    answer: Callable[[Sequence[Prompt]], list[str]],
    metrics: Mapping[str, Metric],
    samples: int,
) -> Scores:
    """Return the mean of each metric over the rows' answers, and the first answers themselves.

    Raises DataError where a row has no prompt, or no right answer to compare with.
    """
    prompts, right = [], []
    for row in rows:
        prompt, answers = _question(row)
        if metrics and not answers:
            raise DataError(
                "E101",
                f"{row.origin}: the row has no right answer, which {', '.join(metrics)} needs",
                fix="evaluate loss only, or name the column of the answers",
            )
        prompts.append(prompt)
        right.append(answers)
    given = answer(prompts)
    per_row = [
        {name: metric(text, answers) for name, metric in metrics.items()}
        for text, answers in zip(given, right, strict=True)
    ]
    means = {name: math.fsum(scores[name] for scores in per_row) / len(per_row) for name in metrics}
    shown = [
        {"prompt": prompt, "answer": text, "right": list(answers), **scores}
        for prompt, text, answers, scores in zip(prompts, given, right, per_row, strict=True)
    ][:samples]
    values = {name: [float(scores[name]) for scores in per_row] for name in metrics}
    return Scores(means, values, shown)


def score_sources(
    rows: Rows,
    dataset: Dataset[Any],
    answer: Callable[[Sequence[Prompt]], list[str]],
    metrics: Sequence[str],
    samples: int,
) -> Scores:
    """Return `score_answers` by a data set's metrics; of several sources, each alone as well.

    Each source's answers are scored by its own metrics, and each gives an equal part of the
    samples.
    """
    if not rows.sources:
        named = {name: metric_of(dataset, name) for name in metrics}
        return score_answers(rows.rows, answer, named, samples)
    whole = Scores()
    every: dict[str, list[float]] = {name: [] for name in metrics}
    lengths = [len(part.rows) for part in rows.sources.values()]
    shares = equal_shares(samples, lengths)
    for source, (called, part), share in zip(
        dataset.sources, rows.sources.items(), shares, strict=True
    ):
        named = {name: metric_of(source, name) for name in metrics}
        found = score_answers(part.rows, answer, named, share)
        for name, values in found.values.items():
            every[name] += values
            whole.metrics[scored_as(called, name)] = found.metrics[name]
            whole.values[scored_as(called, name)] = values
        whole.samples += [{**sample, "source": called} for sample in found.samples]
    means = {name: math.fsum(values) / len(values) for name, values in every.items()}
    whole.metrics, whole.values = {**means, **whole.metrics}, {**every, **whole.values}
    return whole


def _question(row: Row) -> tuple[Prompt, tuple[str, ...]]:
    if isinstance(row, CompletionRow):
        return row.prompt, row.answers or (row.completion,)
    if isinstance(row, PreferenceRow):
        return row.prompt, row.answers or (row.chosen,)
    if isinstance(row, UnpairedRow):
        return row.prompt, row.answers or ((row.completion,) if row.label else ())
    if isinstance(row, PromptRow):
        return row.prompt, row.answers
    if isinstance(row, ChatRow) and row.messages[-1]["role"] == "assistant":
        return row.messages[:-1], (row.messages[-1]["content"],)
    raise DataError(
        "E101", f"{row.origin}: a {type(row).__name__} asks no question", fix="evaluate loss only"
    )
