"""Generalised knowledge distillation: a small model learns a larger one's distributions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from llmft.api import (
    Alignment,
    DataError,
    Encoded,
    PromptRow,
    Row,
    RowKind,
    StageContext,
    StageResult,
    hookimpl,
)
from llmft_alignments.gkd.config import GkdConfig
from llmft_alignments.start import dropout_off


class Gkd(Alignment[GkdConfig]):
    """Distillation on a teacher's distributions, over rows' answers or the model's own (GKD)."""

    method = "gkd"
    Config = GkdConfig
    rows = ("completion", "chat", "prompt")
    produces = "policy"
    supports_token_budget = False
    supports_shard_base = False
    supports_length_groups = False
    evaluate_generates = True
    greater_is_better: ClassVar = {"divergence": False}

    def __init__(self, config: GkdConfig) -> None:
        super().__init__(config)
        # Its rows may be prompts alone, and then their answers are drawn.
        self.evaluate_generates = config.writes_every_answer
        self._held_out: Sequence[Encoded] | None = None

    def train(self, context: StageContext) -> StageResult:
        from llmft_alignments.gkd.objective import GkdObjective

        items = self._items(context, context.data.rows())
        if not items:
            raise DataError("E105", f"stage '{context.name}' has no row to train on")
        if self.config.writes:
            self._tell_of_rows_without_prompt(context, items)
        objective = GkdObjective(self.config, context)
        with dropout_off(context, self.config.disable_dropout):
            return context.fit_online(items, objective)

    def evaluate(self, context: StageContext) -> Mapping[str, Sequence[float]]:
        """Return the divergence in each held-out row: the mean over its answer's tokens, in nats.

        The answer is the row's own; for a prompt alone the trained model samples one.
        """
        from llmft_alignments.gkd.objective import divergences

        if self._held_out is None:
            rows = context.data.held_out()
            self._held_out = self._items(context, rows) if rows else []
        if not self._held_out:
            return {}
        return {"divergence": divergences(self.config, context, self._held_out)}

    def _items(self, context: StageContext, rows: Sequence[Row]) -> Sequence[Encoded]:
        """Return rows as token ids; of prompts alone, which are all of one kind, no answer."""
        if not rows or not isinstance(rows[0], PromptRow):
            return context.data.encode(rows)
        prompts = context.data.encode_prompts(rows, self.max_new_tokens())
        return [Encoded(one.input_ids, one.labels, one.origin) for one in prompts]

    def _tell_of_rows_without_prompt(self, context: StageContext, items: Sequence[Encoded]) -> None:
        """Say how many rows keep their own answer, whoever is to write it; not all may."""
        from llmft_alignments.gkd.objective import answer_start

        kept = sum(not answer_start(item) for item in items)
        if kept == len(items):
            raise DataError(
                "E105",
                f"a model is to write answers, and no row of stage '{context.name}' has a prompt"
                " before its own",
                fix="give rows with prompts, without learn: every_token; or write lmbda: 0 and"
                " seq_kd: false",
            )
        if kept:
            context.log.note(
                f"{kept} of {len(items)} rows have no prompt, and keep their own answer: no model"
                " writes one"
            )

    def row_kinds(self) -> Sequence[RowKind]:
        """Return that prompts alone are read where no answer is a row's own."""
        return self.rows if self.config.writes_every_answer else ("completion", "chat")

    def max_new_tokens(self) -> int:
        return self.config.max_new_tokens if self.config.writes else 0

    def smoke_overrides(self) -> Mapping[str, Any]:
        return {"max_new_tokens": min(self.config.max_new_tokens, 8)}


@hookimpl
def llmft_alignments() -> list[type[Gkd]]:
    return [Gkd]
