"""A stage that is planned: the StageContext of a run, with a model that has no numbers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from llmft.api import (
    Alignment,
    Answer,
    Encoded,
    EncodedPair,
    EncodedPrompt,
    Objective,
    OnlineObjective,
    Prompt,
    PromptRow,
    Row,
    Sampling,
    StageResult,
)
from llmft.api.errors import EnvironmentFault, LlmftError
from llmft.api.rows import IGNORED
from llmft.data.pair_encoding import encode_pairs
from llmft.data.prompt_encoding import encode_prompts
from llmft.engine.stage import StageRunner
from llmft.modeling.counting import count_parameters, token_rows
from llmft.modeling.precision import train_in_float32
from llmft.planning.batch_choice import Chosen, Counts, choose
from llmft.planning.evaluation_cost import PROMPTS, grow_cache, judge
from llmft.planning.fake_tensors import Body, ShapesOnly, fake_base, tensors_of
from llmft.planning.memory_tracker import ADAPTER, EARLIER, MAPPED, WEIGHTS, MemoryTracker
from llmft.planning.stored import WIDTHS, mapped_bytes, stored_dtype, unread_bytes
from llmft.planning.training_cost import train_steps
from llmft.runs.artifacts import ROWS
from llmft.runs.upstream import stage_adapter, stage_work, twin
from llmft.training.step_plan import Plan, refuse_endless_warmup

ROWS_TOKENISED = 20_000
ASSUMED_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class SampledCounts:
    """How many answers a stage draws to how many prompts, and of how many tokens at most."""

    prompts: int
    answers: int
    max_new_tokens: int


class PlannedStage(StageRunner):
    """Lets an alignment do what it would do, on the rows that take the most memory."""

    def begin(self, *, in_ram: bool) -> None:
        """Open the account. in_ram: the model is trained where its files are mapped."""
        self.in_ram = in_ram
        self.memory, self.body = MemoryTracker(), Body()
        self.counts: Counts | None = None
        self.drawn: SampledCounts | None = None
        self.chosen: Chosen | None = None
        self.remarks: list[str] = []
        self.judging = self.assumed = False

    @cached_property
    def model(self) -> Any:
        """The base with the adapter, without numbers; the ledger has its bytes."""
        with torch.device("meta"), ShapesOnly():
            base = fake_base(
                self.recipe.model,
                self.load_options,
                varlen=self.adapter is None or self.adapter.supports_packing,
            )
            if self.train.gradient_checkpointing:
                base.gradient_checkpointing_enable({"use_reentrant": False})
            self._bare = twin(base)
            own = {tensor.untyped_storage()._cdata for tensor in tensors_of(base)}
            model = self.adapter.attach(base) if self.adapter else base
            if isinstance(self.work, Alignment):
                self.work.extend(model)
                train_in_float32(model)
        self.memory.vocabulary = model.get_output_embeddings().weight.shape[0]
        for tensor in tensors_of(self.body.given_to(model)):
            ours = tensor.untyped_storage()._cdata in own
            self.memory.add(tensor, WEIGHTS if ours else ADAPTER)
        stored = stored_dtype(self.recipe.model, model.config)
        self._maps = self.in_ram and stored == self.recipe.model.dtype
        if self.in_ram:
            self.memory.live[MAPPED] = mapped_bytes(model, self.recipe.model, stored)
            if stored != self.recipe.model.dtype:  # all is read, and written elsewhere
                self.memory.note(MAPPED, count_parameters(self._bare)[1] * WIDTHS.get(stored, 4))
        return model

    def count_base(self) -> int:
        """Return the base's parameters, where no adapter can be attached."""
        with torch.device("meta"):
            base = fake_base(self.recipe.model, self.load_options, varlen=False)
        for tensor in tensors_of(base):
            self.memory.add(tensor, WEIGHTS)
        return count_parameters(base)[1]

    def load_stage(self, name: str) -> Any:
        """Return the ghost of an earlier stage's model on this one's base."""
        _ = self.model
        stage = self.recipe.stage(name.rpartition("/")[2])
        made_by = stage_work(stage, self.registry)
        assert isinstance(made_by, Alignment)  # a task makes no model
        with self.memory.making(EARLIER):
            with torch.device("meta"):
                model = stage_adapter(self.recipe, stage, self.registry).attach(twin(self._bare))
                made_by.extend(model)
            for tensor in tensors_of(self.body.given_to(model)):
                self.memory.add(tensor)
        return model.requires_grad_(False).eval()

    @property
    def starts_as_reference(self) -> bool:
        """Whether answers can be compared with the reference's: not without numbers."""
        return False

    def precision(self) -> AbstractContextManager[Any]:
        """Return a context in which the model computes as in a training step."""
        return torch.autocast("cpu", torch.bfloat16, enabled=self.train.bf16)

    def reference_model(self) -> Any:
        """Return the ghost of the stage's start on this stage's base."""
        _ = self.model
        base = twin(self._bare)
        if self.stage.start_from is None:
            return base.requires_grad_(False).eval()
        with self.memory.making(EARLIER):
            with torch.device("meta"):
                model = self.adapter.attach(base)
            for tensor in tensors_of(self.body.given_to(model)):
                self.memory.add(tensor)
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
            return () if isinstance(self.work, Alignment) else self._made_up()

    def held_out(self) -> Sequence[Row]:
        """Return the rows the stage is judged on; none where they cannot be read from here."""
        try:
            return super().held_out()
        except LlmftError as error:
            if error.exit_code != 4:
                raise
            self.remark("the evaluation is not counted, as its rows are not here")
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

    def encode_prompts(self, rows: Sequence[Row], max_new_tokens: int) -> list[EncodedPrompt]:
        """Return the prompts that take the most memory, having counted all."""
        if not rows:
            ids = self._assumed()[0].input_ids[max_new_tokens:] or (1,)
            prompt = EncodedPrompt(ids, (IGNORED,) * len(ids))
            return [prompt] * self.train.per_device_train_batch_size
        return self._heaviest(
            *self._sampled(
                rows, lambda some: encode_prompts(self.encoder, some, self.train, max_new_tokens)[0]
            )
        )

    def decode(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, **options: Any
    ) -> list[Answer]:
        """Return made-up answers of the greatest length, having let their cache grow."""
        size = options.get("batch_size") or self.train.per_device_eval_batch_size
        lengths = sorted((len(prompt) for prompt in prompts), reverse=True)[:size]
        if lengths:
            grow_cache(self, lengths, max_new_tokens)
        made_up = [1] * max_new_tokens
        return [Answer(list(made_up), [0.0] * max_new_tokens) for _ in prompts]

    def generate(self, prompts: Sequence[Prompt], max_new_tokens: int) -> list[str]:
        """Return empty answers: a model without numbers has none."""
        return ["" for _ in prompts]

    def sample(
        self, prompts: Sequence[Prompt], sampling: Sampling, *, seed: int = 0
    ) -> list[list[str]]:
        """Return made-up answers of about the greatest length, having let their cache grow."""
        count, new = sampling.num_return_sequences, sampling.max_new_tokens
        asked = [len(self.encoder.prompt_ids(prompt)) for prompt in prompts[:PROMPTS]]
        lengths = sorted((length for length in asked for _ in range(count)), reverse=True)
        self.memory.begin("sample")
        grow_cache(self, lengths[: self.train.per_device_eval_batch_size], new)
        if not self.assumed:
            self.drawn = SampledCounts(len(prompts), count * len(prompts), new)
        return [[f"{number}" + " a" * (new - 1) for number in range(count)] for _ in prompts]

    def stage_folder(self, name: str) -> Path:
        """Return where an earlier stage of this plan has written made-up rows, if it did."""
        folder = self.folder.parent / name
        if not (folder / ROWS).is_file():
            raise EnvironmentFault("E201", f"the stage '{name}' has yet to make them")
        return folder

    def fit_online(self, prompts: Sequence[Any], objective: OnlineObjective) -> StageResult:
        """Compute what the loop would in one step, on the heaviest prompts."""
        known = self.chosen if self.chosen and len(prompts) == len(self.chosen.items) else None
        size = self.train.per_device_train_batch_size
        batch = known.batches_of(prompts)[0] if known else list(prompts[:size])
        if self.stage.evaluate is not None:
            judge(self)
        self._refuse_endless_warmup()
        self.memory.begin("rollout")
        drawn_of = batch * self.train.gradient_accumulation_steps
        items = list(objective.sample_rollouts(drawn_of, range(len(drawn_of)), 0, lambda: False))
        self.memory.begin("train")
        batches = [items[:size]]
        train_steps(self.model, batches, objective, self.train, self._groups(), self.memory)
        self.memory.begin("save")
        return StageResult(produces=self.work.produces)

    def fit(self, items: Sequence[Any], objective: Objective) -> StageResult:
        """Compute what the loop would, on the heaviest batches only."""
        self._refuse_endless_warmup()
        known = self.chosen if self.chosen and len(items) == len(self.chosen.items) else None
        size = self.train.per_device_train_batch_size
        batches = known.batches_of(items) if known else [list(items[:size])]
        if self.stage.evaluate is not None:
            judge(self)
        self.memory.begin("train")
        train_steps(self.model, batches, objective, self.train, self._groups(), self.memory)
        self.memory.begin("save")
        return StageResult(produces=self.work.produces)

    def _refuse_endless_warmup(self) -> None:
        if self.counts is not None:
            steps = Plan.of(self.counts.items, self.train, self.seed).steps
            refuse_endless_warmup(self.name, self.train, steps)

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
            self.memory.live[WEIGHTS] -= unread_bytes(model, len(ids))
        return chosen.items

    def _made_up(self) -> Sequence[Row]:
        """Return a batch of prompts for a task whose rows cannot be read from here."""
        self.assumed = True
        tokens = min(self.max_length or ASSUMED_TOKENS, ASSUMED_TOKENS) // 2
        self.remark(f"memory is that of prompts of {tokens:,} tokens")
        count = self.train.per_device_eval_batch_size
        return [PromptRow(f"{number}" + " a" * (tokens - 1)) for number in range(count)]

    def _assumed(self) -> list[Encoded]:
        length = min(self.max_length or ASSUMED_TOKENS, ASSUMED_TOKENS)
        length = self.train.max_length or length
        self.remark(f"memory is that of rows of {length:,} tokens, half of them learnt")
        ids = (1,) * length
        row = Encoded(ids, (IGNORED,) * (length // 2) + ids[length // 2 :])
        return [row] * self.train.per_device_train_batch_size
