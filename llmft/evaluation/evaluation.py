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
from llmft.evaluation.intervals import ratio_values
from llmft.modeling.forward import label_nll


@dataclass
class Scores:
    """Metrics, and the answers they were computed from.

    values: of a metric that is the mean over rows, the value of each.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    values: dict[str, list[float]] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)


def mean_loss(
    model: Any,
    rows: Sequence[Encoded],
    batch_size: int,
    on_batch: Callable[[int, int], None] = lambda *_: None,
) -> float:
    """Return the mean negative log-likelihood of the rows' label tokens, in nats."""
    return row_losses(model, rows, batch_size, on_batch)[0]


def row_losses(
    model: Any,
    rows: Sequence[Encoded],
    batch_size: int,
    on_batch: Callable[[int, int], None] = lambda *_: None,
) -> tuple[float, list[float]]:
    """Return `mean_loss`, and pseudo-values of the rows, whose mean it is."""
    total, count = 0.0, 0
    sums: list[float] = []
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for start in range(0, len(rows), batch_size):
                some = rows[start : start + batch_size]
                found = label_nll(model, some)
                nll = found.nll_N.double()
                total += float(nll.sum())
                count += len(nll)
                sums += nll.new_zeros(len(some)).index_add(0, found.row_N, nll).tolist()
                on_batch(min(start + batch_size, len(rows)), len(rows))
    finally:
        model.train(training)
    return total / count, ratio_values(sums, [float(row.n_labels) for row in rows])


def loss_values(loss: float, by_row: Sequence[float]) -> dict[str, list[float]]:
    """Return the rows' pseudo-values of the loss and of the perplexity (the delta method)."""
    surprise = perplexity(loss)
    return {
        "loss": list(by_row),
        "perplexity": [surprise * (1 + value - loss) for value in by_row],
    }


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
