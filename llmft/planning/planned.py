"""A stage that is planned: the StageContext of a run, with a model that has no numbers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch

from llmft.api import Encoded, EncodedPair, Objective, Prompt, Row, StageResult
from llmft.errors import LlmftError
from llmft.planning.batches import Chosen, Counts, choose
from llmft.planning.ghost import Body, NoNumbers, ghost_base, tensors_of
from llmft.planning.judging import judge
from llmft.planning.ledger import ADAPTER, EARLIER, MAPPED, WEIGHTS, Ledger
from llmft.planning.steps import train_steps
from llmft.planning.stored import WIDTHS, mapped_bytes, stored_dtype, unread_bytes
from llmft.preparing.counting import count_parameters
from llmft.preparing.encoding import IGNORED
from llmft.preparing.pairs import encode_pairs
from llmft.saving.earlier import stage_adapter, twin
from llmft.stage import StageRun, token_rows

ROWS_TOKENISED = 20_000
ASSUMED_TOKENS = 2048


class PlannedStage(StageRun):
    """Lets an alignment do what it would do, on the rows that take the most memory."""

    def begin(self, *, in_ram: bool) -> None:
        """Open the account. in_ram: the model is trained where its files are mapped."""
        self.in_ram = in_ram
        self.ledger, self.body = Ledger(), Body()
        self.counts: Counts | None = None
        self.chosen: Chosen | None = None
        self.remarks: list[str] = []
        self.traced = self.judging = False

    @cached_property
    def model(self) -> Any:
        """The base with the adapter, without numbers; the ledger has its bytes."""
        with torch.device("meta"), NoNumbers():
            base = ghost_base(
                self.recipe.model, self.load_options, varlen=self.adapter.supports_packing
            )
            if self.train.gradient_checkpointing:
                base.gradient_checkpointing_enable({"use_reentrant": False})
            self._bare = twin(base)
            own = {tensor.untyped_storage()._cdata for tensor in tensors_of(base)}
            model = self.adapter.attach(base)
            self.alignment.extend(model)
        self.ledger.vocabulary = model.get_output_embeddings().weight.shape[0]
        for tensor in tensors_of(self.body.given_to(model)):
            ours = tensor.untyped_storage()._cdata in own
            self.ledger.add(tensor, WEIGHTS if ours else ADAPTER)
        stored = stored_dtype(self.recipe.model, model.config)
        self._maps = self.in_ram and stored == self.recipe.model.dtype
        if self.in_ram:
            self.ledger.live[MAPPED] = mapped_bytes(model, self.recipe.model, stored)
            if stored != self.recipe.model.dtype:  # all is read, and written elsewhere
                self.ledger.note(MAPPED, count_parameters(self._bare)[1] * WIDTHS.get(stored, 4))
        return model

    def count_base(self) -> int:
        """Return the base's parameters, where no adapter can be attached."""
        with torch.device("meta"):
            base = ghost_base(self.recipe.model, self.load_options, varlen=False)
        for tensor in tensors_of(base):
            self.ledger.add(tensor, WEIGHTS)
        return count_parameters(base)[1]

    def load_stage(self, name: str) -> Any:
        """Return the ghost of an earlier stage's model on this one's base."""
        _ = self.model
        stage = self.recipe.stage(name.rpartition("/")[2])
        alignment = self.registry.method("alignment", stage.alignment.method)(stage.alignment)
        with self.ledger.making(EARLIER):
            with torch.device("meta"):
                model = stage_adapter(self.recipe, stage, self.registry).attach(twin(self._bare))
                alignment.extend(model)
            for tensor in tensors_of(self.body.given_to(model)):
                self.ledger.add(tensor)
        return model.requires_grad_(False).eval()

    # --- the contract's verbs

    def rows(self) -> Sequence[Row]:
        """Return the training rows; none, with a remark, where they cannot be read from here."""
        try:
            return super().rows()
        except LlmftError as error:
            if error.exit_code != 4:  # only what the machine lacks may be assumed
                raise
            self.remark(f"the rows cannot be read from here: {error.faults[0].what}")
            return ()

    def encode(self, rows: Sequence[Row]) -> list[Encoded]:
        """Return the rows that take the most memory, having counted all."""
        if not rows:
            return self._assumed()
        return self._heaviest(
            *self._sampled(rows, lambda some: self.encoder.encode(some, self.train)[0])
        )

    def encode_pairs(self, rows: Sequence[Row]) -> list[EncodedPair]:
        """Return the pairs that take the most memory, having counted all."""
        if not rows:
            return [EncodedPair(row, row, len(row.input_ids) // 2) for row in self._assumed()]
        return self._heaviest(
            *self._sampled(rows, lambda some: encode_pairs(self.encoder, some, self.train)[0])
        )

    def generate(self, prompts: Sequence[Prompt], max_new_tokens: int) -> list[str]:
        """Return empty answers: a model without numbers has none."""
        return ["" for _ in prompts]

    def fit(self, items: Sequence[Any], objective: Objective) -> StageResult:
        """Compute what the loop would, on the heaviest batches only."""
        self.traced = True
        known = self.chosen if self.chosen and len(items) == len(self.chosen.items) else None
        size = self.train.per_device_train_batch_size
        batches = known.batches_of(items) if known else [list(items[:size])]
        if self.stage.evaluate is not None:
            judge(self)
        self.ledger.begin("train")
        train_steps(self.model, batches, objective, self.train, self._groups(), self.ledger)
        self.ledger.begin("save")
        return StageResult(produces=self.alignment.produces)

    # --- telling

    def remark(self, text: str) -> None:
        """Keep something that the reader of the plan should know."""
        if text not in self.remarks:
            self.remarks.append(text)

    def _sampled(self, rows: Sequence[Row], encode: Any) -> tuple[list[Any], float]:
        every = -(-len(rows) // ROWS_TOKENISED)
        some = rows[::every]
        if every > 1:
            self.remark(f"{len(some):,} of {len(rows):,} rows were tokenised; numbers are scaled")
        return encode(some), len(some) / len(rows)

    def _heaviest(self, items: list[Any], share: float) -> list[Any]:
        if not items:
            return []
        counts, chosen = choose(items, self.train, self.seed, self.max_length, share)
        if self.judging:
            return chosen.judged
        self.counts, self.chosen = counts, chosen
        model = self.model
        if share == 1 and self._maps:
            ids = {token for item in items for row in token_rows(item) for token in row.input_ids}
            self.ledger.live[WEIGHTS] -= unread_bytes(model, len(ids))
        return chosen.items

    def _assumed(self) -> list[Encoded]:
        length = min(self.max_length or ASSUMED_TOKENS, ASSUMED_TOKENS)
        length = self.train.max_length or length
        self.remark(f"memory is that of rows of {length:,} tokens, half of them learnt")
        ids = (1,) * length
        row = Encoded(ids, (IGNORED,) * (length // 2) + ids[length // 2 :])
        return [row] * self.train.per_device_train_batch_size
