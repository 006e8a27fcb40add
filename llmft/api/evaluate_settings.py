"""The settings of `evaluate`, and of metrics."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, SerializeAsAny, model_validator

from llmft.api.method_settings import TaskConfig
from llmft.api.settings import Interval, Line, Name, Settings, Split


class MetricConfig(Settings):
    """Base of every metric's settings."""

    method: Line = Field(description="which metric method")
    name: Name | None = Field(
        None, description="what its score is called; default: as the method is"
    )


class ScoredTaskConfig(TaskConfig):
    """Base of the settings of a task that has its rows scored: `StageContext.row_scores`."""

    metrics: list[Name | SerializeAsAny[MetricConfig]] = Field(
        default_factory=lambda: list[str | MetricConfig](["loss"]),
        min_length=1,
        max_length=32,
        description="loss, perplexity, a metric of the data's method, such as exact_match, or any"
        " installed metric, by its name or as a block: {method: distinct, n: 2}",
    )
    max_new_tokens: int = Field(
        32, ge=1, le=100_000, description="the most tokens in a generated answer"
    )
    base: bool = Field(
        False, description="also score the base model, without the adapter, on the same rows"
    )


class EvaluateSettings(Settings):
    """How a stage is scored: before and after training, and during it where that is asked."""

    metrics: list[Name | SerializeAsAny[MetricConfig]] = Field(
        default_factory=lambda: list[str | MetricConfig](["loss"]),
        max_length=32,
        description="loss, perplexity, a metric of the data's method, such as exact_match, or any"
        " installed metric, by its name or as a block: {method: distinct, n: 2};"
        " the alignment's own metrics are always added, even to an empty list",
    )
    split: Split | None = Field(
        None,
        description="the split of the same data to score on, or parts of splits, such as"
        " train[80%:]; default: its held-out split",
    )
    holdout: Interval | None = Field(
        None,
        description="hold out this share of the training rows, or from 1 on this number of rows,"
        " and score on them; a number is taken from all sources of a mixture together, and so is a"
        " share of prompts",
    )
    holdout_by: Literal["row", "prompt"] = Field(
        "row",
        description="what holdout draws: single rows, or prompts with all of their rows, so that no"
        " prompt is both learnt and scored on; a row more may be held out then",
    )
    limit: int | None = Field(
        None, ge=1, le=100_000_000, description="score on this many rows at most"
    )
    max_new_tokens: int = Field(
        32, ge=1, le=100_000, description="the most tokens in a generated answer"
    )
    samples: int = Field(
        20,
        ge=0,
        le=100_000,
        description="answers written to samples.jsonl, before and after training",
    )
    eval_strategy: Literal["no", "steps", "epoch"] = Field(
        "no", description="when the stage is also scored during training, and at its last step"
    )
    eval_steps: Interval | None = Field(
        None,
        description="optimiser steps between two evaluations, for 'steps'; below 1: a share of all"
        " steps; default: train.logging_steps",
    )
    generate_every: int | None = Field(
        None,
        ge=1,
        le=100_000_000,
        description="at every n-th evaluation during training, generate answers and score them too;"
        " default: only before and after training",
    )
    load_best_model_at_end: bool = Field(
        False, description="the stage's result is its best checkpoint instead of its last step"
    )
    metric_for_best_model: Name | None = Field(
        None,
        description="the metric that says which evaluation is the best, whose checkpoint is kept;"
        " default: loss, where load_best_model_at_end or early_stopping_patience is set",
    )
    greater_is_better: bool | None = Field(
        None, description="whether more of that metric is better; default: what the metric says"
    )
    early_stopping_patience: int | None = Field(
        None,
        ge=1,
        le=100_000_000,
        description="stop after so many evaluations in a row that bring no improvement",
    )
    early_stopping_threshold: float = Field(
        0.0,
        ge=0,
        le=1e9,
        description="the improvement over the best evaluation so far that counts for"
        " early_stopping_patience",
    )

    @property
    def best_metric(self) -> str | None:
        """The metric that evaluations are compared by; None where none of them is chosen."""
        chosen = self.load_best_model_at_end or self.early_stopping_patience
        return self.metric_for_best_model or ("loss" if chosen else None)

    @model_validator(mode="after")
    def _one_source(self) -> EvaluateSettings:
        if self.split and self.holdout:
            raise ValueError("split and holdout exclude each other; keep one")
        if self.holdout_by != "row" and not self.holdout:
            raise ValueError("holdout_by has an effect only with holdout; add it, or drop this")
        return self

    @model_validator(mode="after")
    def _scored_during_training(self) -> EvaluateSettings:
        if self.eval_strategy == "no":
            for name in (
                "eval_steps", "generate_every", "load_best_model_at_end", "metric_for_best_model",
                "early_stopping_patience",
            ):  # fmt: skip
                if getattr(self, name):
                    raise ValueError(
                        f"{name} has an effect only where a stage is scored during training;"
                        " write eval_strategy: steps or epoch, or drop it"
                    )
        if self.eval_strategy == "epoch" and self.eval_steps is not None:
            raise ValueError(
                "eval_steps has no effect with eval_strategy 'epoch'; drop it, or write steps"
            )
        if self.early_stopping_threshold and not self.early_stopping_patience:
            raise ValueError(
                "early_stopping_threshold has an effect only with early_stopping_patience; set that"
                " too, or drop it"
            )
        if self.greater_is_better is not None and self.best_metric is None:
            raise ValueError(
                "greater_is_better has an effect only where the best evaluation is chosen; write"
                " load_best_model_at_end, metric_for_best_model or early_stopping_patience, or drop"
                " it"
            )
        return self
