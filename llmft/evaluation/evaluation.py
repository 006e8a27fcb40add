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
    MetricFunction,
    PreferenceRow,
    Prompt,
    PromptRow,
    Row,
    ScoredAnswer,
    UnpairedRow,
)
from llmft.api.errors import DataError
from llmft.data.encoding import answers_of
from llmft.data.mixed_rows import equal_shares
from llmft.data.usable_rows import Rows
from llmft.evaluation.intervals import Range, corpus_values, ratio_values
from llmft.modeling.forward import label_nll
from llmft.recipes.sources import scored_as
from llmft.registry.return_checks import (
    metric_of,
    score_names,
    values_of_answer,
    values_of_corpus,
)
from llmft.system import distributed


@dataclass
class Scores:
    """Metrics, and the answers they were computed from.

    values: of a metric that is the mean over rows, the value of each. answered: all of the answers,
    of which `samples` has some with their scores.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    values: dict[str, list[float]] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)
    answered: list[ScoredAnswer] = field(default_factory=list)


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
                batches,
                losses,
                lambda done: on_batch(min(done * batch_size, len(rows)), len(rows)),
                alike=True,
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


def loss_scores(metrics: Sequence[Any], losses: RowLosses, source: str = "") -> Scores:
    """Return the loss and the perplexity, those of them that are asked. source: whose; '': all.

    metrics: all that a recipe asks for, by name or as blocks.
    """
    loss, of_loss = losses.mean, losses.values()
    surprise = perplexity(loss)
    values = {
        "loss": (loss, of_loss),
        "perplexity": (surprise, [surprise * (1 + value - loss) for value in of_loss]),
    }
    found = Scores()
    for name in metrics:
        if isinstance(name, str) and name in values:
            called = scored_as(source, name) if source else name
            found.metrics[called], found.values[called] = values[name]
    return found


def score_rows(
    rows: Rows,
    dataset: Dataset[Any],
    metrics: Sequence[Any],
    functions: Sequence[MetricFunction[Any]],
    *,
    losses: Callable[[], tuple[Sequence[str], RowLosses]] | None,
    answer: Callable[[Sequence[Prompt]], list[str]] | None,
    samples: int,
    intervals: bool = True,
) -> Scores:
    """Return the scores of rows, of several sources each alone as well.

    metrics: names of loss, perplexity and the data's metrics; others, and blocks, are those of
    `functions`. losses: gives the rows' losses with the origin of each; None: not computed. answer:
    generates, also where no metric needs it; None: nothing is generated. samples, intervals: as
    `score_answers` has them.
    """
    found = Scores()
    if losses is not None:
        origins, of_rows = losses()
        parts = [loss_scores(metrics, of_rows)]
        for source, numbers in rows.by_source(origins).items():
            parts.append(loss_scores(metrics, of_rows.of(numbers), source))
        for part in parts:
            found.metrics |= part.metrics
            found.values |= part.values
    if answer is not None:
        own = {name for made in functions for name in score_names(made)}
        named = [n for n in metrics if isinstance(n, str) and n in dataset.metrics and n not in own]
        answers = score_sources(
            rows, dataset, answer, named, samples, functions, intervals=intervals
        )
        found.metrics |= answers.metrics
        found.values |= answers.values
        found.samples, found.answered = answers.samples, answers.answered
    return found


def score_answers(
    rows: Sequence[Row],
    answer: Callable[[Sequence[Prompt]], list[str]],
    metrics: Mapping[str, Metric],
    samples: int,
    functions: Sequence[MetricFunction[Any]] = (),
    *,
    intervals: bool = True,
) -> Scores:
    """Return each metric of the rows' answers, and the first answers themselves.

    metrics: of the rows' data set. functions: metrics that a recipe chose beside them. intervals:
    of a metric over all answers together, also the pseudo-values of the rows, which take time.
    Raises DataError where a row has no prompt, or no right answer to compare with.
    """
    needing = [*metrics, *(type(one).method for one in functions if one.needs_references)]
    answered = _answered(rows, answer, needing)
    alone = [one for one in functions if not one.is_of_corpus()]
    per_row = [
        {name: metric(one.answer, one.references) for name, metric in metrics.items()}
        | {name: value for made in alone for name, value in values_of_answer(made, one).items()}
        for one in answered
    ]
    names = list(per_row[0]) if per_row else []
    means = {name: math.fsum(scores[name] for scores in per_row) / len(per_row) for name in names}
    shown = [
        {"prompt": one.prompt, "answer": one.answer, "right": list(one.references), **scores}
        for one, scores in zip(answered, per_row, strict=True)
    ][:samples]
    values = {name: [float(scores[name]) for scores in per_row] for name in names}
    found = Scores(means, values, shown, answered)
    _score_together(found, functions, intervals)
    return found


def _answered(
    rows: Sequence[Row], answer: Callable[[Sequence[Prompt]], list[str]], needing: Sequence[str]
) -> list[ScoredAnswer]:
    """Return the rows' answers with their references. needing: the metrics that need some."""
    asked = []
    for row in rows:
        prompt, answers = _question(row)
        if needing and not answers:
            raise DataError(
                "E101",
                f"{row.origin}: the row has no right answer, which {', '.join(needing)} needs",
                fix="evaluate loss only, or name the column of the answers",
            )
        asked.append((prompt, answers, row))
    given = answer([prompt for prompt, _, _ in asked])
    return [
        ScoredAnswer(prompt, text, tuple(answers), row)
        for text, (prompt, answers, row) in zip(given, asked, strict=True)
    ]


def _score_together(
    found: Scores, functions: Sequence[MetricFunction[Any]], intervals: bool
) -> None:
    """Add the metrics that score all of the answers together."""
    answered = found.answered
    for metric in (one for one in functions if one.is_of_corpus() and answered):
        whole = values_of_corpus(metric, answered)
        found.metrics |= whole
        if intervals:

            def without(
                rows: Sequence[int], metric: MetricFunction[Any] = metric
            ) -> dict[str, float]:
                return values_of_corpus(metric, [answered[row] for row in rows])

            found.values |= corpus_values(len(answered), whole, without)


def score_sources(
    rows: Rows,
    dataset: Dataset[Any],
    answer: Callable[[Sequence[Prompt]], list[str]],
    metrics: Sequence[str],
    samples: int,
    functions: Sequence[MetricFunction[Any]] = (),
    *,
    intervals: bool = True,
) -> Scores:
    """Return `score_answers` by a data set's metrics; of several sources, each alone as well.

    Each source's answers are scored by its own metrics, and each gives an equal part of the
    samples.
    """
    if not rows.sources:
        named = {name: metric_of(dataset, name) for name in metrics}
        return score_answers(rows.rows, answer, named, samples, functions, intervals=intervals)
    whole, alone = Scores(), Scores()
    lengths = [len(part.rows) for part in rows.sources.values()]
    shares = equal_shares(samples, lengths)
    for source, (called, part), share in zip(
        dataset.sources, rows.sources.items(), shares, strict=True
    ):
        named = {name: metric_of(source, name) for name in metrics}
        found = score_answers(part.rows, answer, named, share, functions, intervals=intervals)
        for name, value in found.metrics.items():
            alone.metrics[scored_as(called, name)] = value
        for name, values in found.values.items():
            whole.values.setdefault(name, []).extend(values)
            alone.values[scored_as(called, name)] = values
        whole.answered += found.answered
        whole.samples += [{**sample, "source": called} for sample in found.samples]
    together = [name for one in functions if one.is_of_corpus() for name in score_names(one)]
    whole.values = {name: some for name, some in whole.values.items() if name not in together}
    whole.metrics = {name: math.fsum(some) / len(some) for name, some in whole.values.items()}
    _score_together(whole, functions, intervals)
    whole.metrics |= alone.metrics
    whole.values |= alone.values
    return whole


def ranges_of(
    dataset: Dataset[Any], functions: Sequence[MetricFunction[Any]], sources: Sequence[str]
) -> dict[str, Range]:
    """Return the range of each score of a stage's answers. sources: the names of the data's."""
    found = dict.fromkeys(dataset.metrics, (0.0, 1.0))
    for metric in functions:
        found |= dict.fromkeys(score_names(metric), metric.value_range)
    return found | {scored_as(s, name): ends for s in sources for name, ends in found.items()}


def asked_prompts(rows: Sequence[Row]) -> list[Prompt]:
    """Return what rows ask; DataError (E101) at one that asks nothing."""
    return [_question(row)[0] for row in rows]


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
