"""A stage that is planned: the parts of a running stage, with a model that has no numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from llmft.api import (
    Alignment,
    Answer,
    Encoded,
    EncodedClassification,
    EncodedPair,
    EncodedPrompt,
    EncodedUnpaired,
    Objective,
    OnlineObjective,
    Prompt,
    PromptRow,
    Row,
    RowScores,
    SamplingParams,
    ScoredTaskConfig,
    StageResult,
)
from llmft.api.errors import EnvironmentFault, LlmftError
from llmft.api.rows import IGNORED
from llmft.data.classification_encoding import encode_classification
from llmft.data.encoding import EncodingReport
from llmft.data.pair_encoding import encode_pairs
from llmft.data.prompt_encoding import encode_prompts
from llmft.data.unpaired_encoding import encode_unpaired
from llmft.engine.stage import StageRunner
from llmft.engine.stage_data import StageData
from llmft.engine.stage_models import StageModels
from llmft.engine.stage_sampler import StageSampler
from llmft.engine.trackers import Trackers
from llmft.modeling.base_model import BaseModel
from llmft.modeling.counting import count_parameters, token_rows
from llmft.modeling.precision import train_in_float32, without_masters
from llmft.modeling.recompute import checkpoint_layers
from llmft.modeling.stored_dtype import stored_dtype
from llmft.planning.batch_choice import Chosen, Counts, choose, tokens_in
from llmft.planning.evaluation_cost import PROMPTS, follow_scores, grow_cache, judge
from llmft.planning.fake_tensors import Body, ShapesOnly, fake_base, tensors_of
from llmft.planning.memory_tracker import (
    ADAPTER,
    CALLBACKS,
    EARLIER,
    MAPPED,
    TRAINED,
    WEIGHTS,
    MemoryTracker,
)
from llmft.planning.stored import WIDTHS, mapped_bytes, unread_bytes
from llmft.planning.training_cost import train_steps
from llmft.recipes.job import BoundStage, Job
from llmft.runs.artifacts import ROWS
from llmft.runs.upstream import stage_model, twin
from llmft.training.step_plan import Plan, refuse_endless_warmup

ROWS_TOKENISED = 20_000
ASSUMED_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class SampledCounts:
    """How many answers a stage samples to how many prompts, and of how many tokens at most."""

    prompts: int
    answers: int
    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class Computed:
    """FLOPs of the matrix products of a plan, and of what they are.

    tokens, items: those of the training passes that were computed, with train_flops; tokens is 0
    where items are answers that the stage samples. passes_per_step: of a whole optimiser step.
    prepare_flops: before the first step, for prepared_items. scored_flops: one batch's loss.
    rollout_flops: beside the decoding, for one step.
    decoded: prompts, batch size and new tokens of the answers that a stage samples at a time.
    """

    train_flops: int = 0
    tokens: int = 0
    items: int = 0
    passes_per_step: float = 0.0
    prepare_flops: int = 0
    prepared_items: int = 0
    scored_flops: int = 0
    rollout_flops: int = 0
    decoded: tuple[int, int, int] = (0, 0, 0)


@dataclass
class PlanState:
    """What the parts of a planned stage find out. in_ram: it is trained where its files are mapped.

    max_new_tokens: of the answers that `decode` was last asked for. trained_bytes: of all that is
    trained. saved_bytes: of what the stage leaves behind.

    judging: an evaluation is followed now. assumed: its rows cannot be read from here.
    computed: for an estimate of the time.
    """

    in_ram: bool
    memory: MemoryTracker = field(default_factory=MemoryTracker)
    body: Body = field(default_factory=Body)
    counts: Counts | None = None
    sampled: SampledCounts | None = None
    chosen: Chosen | None = None
    remarks: list[str] = field(default_factory=list)
    max_new_tokens: int = 0
    trained_bytes: int = 0
    saved_bytes: int = 0
    judging: bool = False
    assumed: bool = False
    computed: Computed = field(default_factory=Computed)

    def computes(self, **found: Any) -> None:
        """Keep something of `computed`."""
        self.computed = replace(self.computed, **found)

    def remark(self, text: str) -> None:
        """Keep something that the reader of the plan should know."""
        if text not in self.remarks:
            self.remarks.append(text)


class PlannedStage(StageRunner):
    """Lets an alignment do what it would do, on the rows that take the most memory."""

    planned = True

    def __init__(
        self, job: Job, bound: BoundStage, base: BaseModel, *, folder: Path, in_ram: bool
    ) -> None:
        self.state = PlanState(in_ram)
        super().__init__(
            job, bound, base, run=folder.parent, folder=folder, dataset=bound.dataset,
            trackers=Trackers([]),
        )  # fmt: skip

    def _parts(self) -> tuple[Any, Any, Any]:
        models = PlannedModels(self.job, self.bound, self.base, self.run, self.log)
        data = PlannedData(self.bound, self.dataset, self.base, self.seed, self.log)
        models.state = data.state = self.state
        data.models = models
        sampler = PlannedSampler(models, data, self.log)
        sampler.state = self.state
        return models, data, sampler

    def row_scores(self, *, base: bool = False) -> RowScores:
        """Follow what a task's scores take, on the rows that take the most memory."""
        asked, state = self.spec.task, self.state
        assert isinstance(asked, ScoredTaskConfig)  # no other task asks
        if base:
            state.memory.begin("load the base")
        model = self.models.base_model() if base else self.models.model
        size = follow_scores(self, asked, model, " the base" if base else "")
        if size and not state.assumed:
            had, count = state.sampled.answers if state.sampled else 0, len(self.data.rows())
            state.sampled = SampledCounts(count, had + count, asked.max_new_tokens)
            state.computes(decoded=(had + count, size, asked.max_new_tokens))
        return RowScores({})

    def stage_folder(self, name: str) -> Path:
        """Return where an earlier stage of this plan has written made-up rows, if it did."""
        folder = self.folder.parent / name
        if not (folder / ROWS).is_file():
            raise EnvironmentFault("E201", f"the stage '{name}' has not made them yet")
        return folder

    def fit_online(self, prompts: Sequence[Any], objective: OnlineObjective) -> StageResult:
        """Compute what the loop would in one step, on the heaviest prompts."""
        size = self.train.per_device_train_batch_size
        self._refuse_endless_warmup()
        batch = self._batches(prompts)[0]
        memory = self.state.memory
        if self.spec.evaluate is not None:
            judge(self)
        memory.begin("rollout")
        asked = batch * self.train.accumulation()
        items = list(objective.sample_rollouts(asked, range(len(asked)), 0, lambda: False))
        memory.begin("train")
        self._count(len(asked), len(items))
        batches = [items[:size]]
        self._train_steps(batches, objective, online=True)
        # Asked last: an objective may take it as a sign that its first update is over.
        trained = sum(len(update) for update in objective.updates(len(items), 0))
        self.state.computes(passes_per_step=trained / max(len(batches[0]), 1))
        memory.begin("save")
        return StageResult(produces=self.work.produces)

    def _count(self, prompts: int, answers: int) -> None:
        """Keep how many answers all steps sample, where a step samples so many."""
        counts = self.state.counts
        if counts is None or not prompts:
            return
        steps = Plan.of(counts.items, self.train, self.seed).steps
        longest = self.state.max_new_tokens
        self.state.sampled = SampledCounts(steps * prompts, steps * answers, longest)

    def fit(self, items: Sequence[Any], objective: Objective) -> StageResult:
        """Compute what the loop would, on the heaviest batches only."""
        self._refuse_endless_warmup()
        batches, memory = self._batches(items), self.state.memory
        if self.spec.evaluate is not None:
            judge(self)
        memory.begin("train")
        self._train_steps(batches, objective)
        self.state.computes(passes_per_step=self.train.accumulation())
        memory.begin("save")
        return StageResult(produces=self.work.produces)

    def _train_steps(
        self, batches: list[list[Any]], objective: Objective, *, online: bool = False
    ) -> None:
        asked, memory = self.spec.evaluate, self.state.memory

        def evaluate() -> None:
            if asked is None or asked.eval_strategy == "no":
                return
            gives = any(one.gives_weights for one in self.bound.callbacks)
            trained = [p for p in self.models.model.parameters() if p.requires_grad and gives]
            with memory.making(CALLBACKS):  # the trained weights, while others are in use
                held = [parameter.clone() for parameter in trained]
            judge(self, in_training=True)
            del held

        groups = self._groups()
        optimizer = self.bound.optimizer
        flops = train_steps(
            self.models.model, batches, objective, self.train, groups, optimizer, memory, evaluate,
            self.bound.callbacks,
        )  # fmt: skip
        chosen = self.state.chosen
        self.state.computes(
            train_flops=sum(flops),
            tokens=0 if online else sum(tokens_in(item) for batch in batches for item in batch),
            items=sum(map(len, batches)),
            prepare_flops=memory.flops["prepare"],
            prepared_items=len(chosen.items) if chosen else 0,
            scored_flops=memory.flops["evaluate"],
            rollout_flops=memory.flops["rollout"],
        )

    def _refuse_endless_warmup(self) -> None:
        if (counts := self.state.counts) is not None:
            steps = Plan.of(counts.items, self.train, self.seed).steps
            last = self.bound.schedule.last_steps()
            refuse_endless_warmup(self.name, self.train, steps, last)

    def _batches(self, items: Sequence[Any]) -> list[list[Any]]:
        chosen = self.state.chosen
        if chosen and len(items) == len(chosen.items):
            return chosen.batches_of(items)
        return [list(items[: self.train.per_device_train_batch_size])]


def _out_of_sight(tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Keep nothing of a tensor, as it is in memory that is not the GPU's; return what makes it."""
    shape, empty = tensor.shape, tensor.new_empty(0)
    return lambda: empty.new_empty(shape)


class PlannedModels(StageModels):
    """Models without numbers, whose bytes the memory tracker has."""

    state: PlanState

    @cached_property
    def model(self) -> Any:
        """The base with the adapter, without numbers."""
        state, memory = self.state, self.state.memory
        with torch.device("meta"), ShapesOnly():
            base = fake_base(self.base, self.load_options, varlen=self.varlen, in_ram=state.in_ram)
            train = self.bound.spec.train
            if train.gradient_checkpointing:
                put = _out_of_sight if train.activation_offloading and not state.in_ram else None
                checkpoint_layers(base, train.gradient_checkpointing_kwargs.every_n_layers, put)
            self.bare = twin(base)
            own = {tensor.untyped_storage()._cdata for tensor in tensors_of(base)}
            model = stage_model(self.bound, base, None)
            if isinstance(self.bound.work, Alignment):
                self.bound.work.extend(model)
                if self.adapter.trains_in_float32():
                    train_in_float32(model)
                elif remark := without_masters(model):
                    self.log.note(remark)
        memory.vocabulary = model.get_output_embeddings().weight.shape[0]
        trains = isinstance(self.bound.work, Alignment)
        whole = trains and bool(self.adapter.trains_base)
        if not trains:
            model.requires_grad_(False)
        for tensor in tensors_of(state.body.given_to(model)):
            ours = tensor.untyped_storage()._cdata in own
            kind = TRAINED if whole and tensor.requires_grad else WEIGHTS if ours else ADAPTER
            memory.add(tensor, kind)
        state.trained_bytes = sum(
            p.numel() * p.element_size() for p in model.parameters() if p.requires_grad
        )
        state.saved_bytes = memory.live[ADAPTER]
        if whole:
            width = WIDTHS[self.base.source.dtype]
            state.saved_bytes = sum(p.numel() for p in self.bare.parameters()) * width
        stored = stored_dtype(self.base.path, self.base.config)
        source = self.base.source
        self.is_mapped = state.in_ram and stored == source.dtype
        if state.in_ram:
            memory.live[MAPPED] = mapped_bytes(model, source, stored)
            if stored != source.dtype:  # all is read, and written elsewhere
                memory.note(MAPPED, count_parameters(self.bare)[1] * WIDTHS.get(stored, 4))
        return model

    @property
    def starts_as_reference(self) -> bool:
        """Whether answers can be compared with the reference's: not without numbers."""
        return False

    def precision(self) -> AbstractContextManager[Any]:
        """Return a context in which the model computes as in a training step."""
        bf16 = self.bound.spec.train.under_autocast
        return torch.autocast("cpu", torch.bfloat16, enabled=bf16)

    def count_base(self) -> int:
        """Return the base's parameters, where no adapter can be attached."""
        with torch.device("meta"):
            base = fake_base(self.base, self.load_options, varlen=False, in_ram=self.state.in_ram)
        for tensor in tensors_of(base):
            self.state.memory.add(tensor, WEIGHTS)
        return count_parameters(base)[1]

    def load_stage(self, name: str) -> Any:
        """Return an earlier stage's model on this one's base, without numbers."""
        _ = self.model
        upstream = self.bound.upstream[name]
        if upstream.stage is None:
            raise upstream.error or KeyError(name)
        made_by = upstream.stage.work
        assert isinstance(made_by, Alignment)  # a task makes no model
        return self._beside(upstream.stage, made_by)

    def reference_model(self) -> Any:
        """Return the stage's start on this stage's base, without numbers."""
        _ = self.model
        if not self.bound.goes_on and not self.adapter.trains_base:
            bare = self.state.body.given_to(twin(self.bare))
            return bare.requires_grad_(False).eval()
        return self._beside(self.bound, None)

    def base_model(self) -> Any:
        """Return the base alone, without numbers."""
        _ = self.model
        if self._base_is_kept:
            bare = self.state.body.given_to(twin(self.bare))
            return bare.requires_grad_(False).eval()
        memory = self.state.memory
        with memory.making(EARLIER):
            with torch.device("meta"):
                model = self._base_of(self.bound)
            for tensor in tensors_of(self.state.body.given_to(model)):
                memory.add(tensor)
        return model.requires_grad_(False).eval()

    def _base_of(self, bound: BoundStage) -> Any:
        """Return a base of its own; what is merged into it changes no shape."""
        with ShapesOnly():
            return fake_base(
                self.base, self.load_options, varlen=self.varlen, in_ram=self.state.in_ram
            )

    def _beside(self, bound: BoundStage, made_by: Alignment[Any] | None) -> Any:
        memory = self.state.memory
        with memory.making(EARLIER):
            with torch.device("meta"):
                model = stage_model(bound, self._shared_base(bound), None)
                if made_by is not None:
                    made_by.extend(model)
            for tensor in tensors_of(self.state.body.given_to(model)):
                memory.add(tensor)
        return model.requires_grad_(False).eval()


class PlannedData(StageData):
    """The rows that take the most memory, after all were counted."""

    streams = False
    state: PlanState
    models: PlannedModels

    def rows(self) -> Sequence[Row]:
        """Return the training rows; none, with a remark, where they cannot be read from here."""
        try:
            return super().rows()
        except LlmftError as error:
            if error.exit_code != 4:  # only what the machine lacks may be assumed
                raise
            self.state.remark(f"the rows cannot be read from here: {error.faults[0].what}")
            return () if isinstance(self.bound.work, Alignment) else self._made_up()

    def held_out(self) -> Sequence[Row]:
        """Return the rows the stage is scored on; none where they cannot be read from here."""
        try:
            return super().held_out()
        except LlmftError as error:
            if error.exit_code != 4:
                raise
            self.state.remark("the evaluation is not counted, as its rows are not here")
            return ()

    def encode(self, rows: Sequence[Row]) -> Sequence[Encoded]:
        """Return the rows that take the most memory, having counted all."""
        if not rows:
            return self._assumed()
        wrap = self._are_wrapped(rows) and not self.state.judging
        return self._heaviest(rows, lambda some: self.encoder.encode(some, self.train, wrap=wrap))

    def encode_pairs(self, rows: Sequence[Row]) -> list[EncodedPair]:
        """Return the pairs that take the most memory, having counted all."""
        if not rows:
            return [EncodedPair(row, row, len(row.input_ids) // 2) for row in self._assumed()]
        return self._heaviest(rows, lambda some: encode_pairs(self.encoder, some, self.train))

    def encode_unpaired(self, rows: Sequence[Row]) -> list[EncodedUnpaired]:
        """Return the labelled answers that take the most memory, having counted all."""
        if not rows:
            return [EncodedUnpaired(row.input_ids, row.labels) for row in self._assumed()]
        return self._heaviest(rows, lambda some: encode_unpaired(self.encoder, some, self.train))

    def encode_classification(self, rows: Sequence[Row]) -> list[EncodedClassification]:
        """Return the rows to classify that take the most memory, having counted all."""
        if not rows:
            none = (IGNORED,)
            return [
                EncodedClassification(row.input_ids, none * len(row.input_ids))
                for row in self._assumed()
            ]
        return self._heaviest(
            rows, lambda some: encode_classification(self.encoder, some, self.train)
        )

    def encode_prompts(self, rows: Sequence[Row], max_new_tokens: int) -> list[EncodedPrompt]:
        """Return the prompts that take the most memory, having counted all."""
        if not rows:
            ids = self._assumed()[0].input_ids[max_new_tokens:] or (1,)
            prompt = EncodedPrompt(ids, (IGNORED,) * len(ids))
            return [prompt] * self.train.per_device_train_batch_size
        return self._heaviest(
            rows, lambda some: encode_prompts(self.encoder, some, self.train, max_new_tokens)
        )

    def _heaviest(
        self, rows: Sequence[Row], encode: Callable[[Any], tuple[Sequence[Any], EncodingReport]]
    ) -> list[Any]:
        held_out = self.__dict__["split"][1] if "split" in self.__dict__ else None
        judged = self.state.judging or (held_out is not None and rows is held_out.rows)
        every = -(-len(rows) // ROWS_TOKENISED)
        some = rows[::every]
        if every > 1:
            self.state.remark(
                f"{len(some):,} of {len(rows):,} rows were tokenised; numbers are scaled"
            )
        (items, report), share = encode(some), len(some) / len(rows)
        if note := report.note():
            self.state.remark(f"to score, {note}" if judged else note)
        if not items:
            return []
        counts, chosen = choose(items, self.train, self.seed, self.max_length, share)
        if judged:
            return chosen.judged
        self.state.counts, self.state.chosen = counts, chosen
        model = self.models.model
        table = model.get_input_embeddings().weight
        if share == 1 and self.models.is_mapped and not table.requires_grad:
            ids = {token for item in items for row in token_rows(item) for token in row.input_ids}
            self.state.memory.live[WEIGHTS] -= unread_bytes(model, len(ids))
        return chosen.items

    def _made_up(self) -> Sequence[Row]:
        """Return a batch of prompts for a task whose rows cannot be read from here."""
        self.state.assumed = True
        tokens = min(self.max_length or ASSUMED_TOKENS, ASSUMED_TOKENS) // 2
        self.state.remark(f"memory is computed for prompts of {tokens:,} tokens")
        count = self.train.per_device_eval_batch_size
        return [PromptRow(f"{number}" + " a" * (tokens - 1)) for number in range(count)]

    def _assumed(self) -> list[Encoded]:
        length = min(self.max_length or ASSUMED_TOKENS, ASSUMED_TOKENS)
        length = self.train.max_length or length
        self.state.remark(
            f"memory is computed for rows of {length:,} tokens, half of them trained on"
        )
        ids = (1,) * length
        row = Encoded(ids, (IGNORED,) * (length // 2) + ids[length // 2 :])
        return [row] * self.train.per_device_train_batch_size


class PlannedSampler(StageSampler):
    """Made-up answers of the greatest length, whose cache has grown."""

    state: PlanState

    def generate(
        self, prompts: Sequence[Prompt], max_new_tokens: int, *, model: Any = None
    ) -> list[str]:
        """Return empty answers: a model without numbers has none."""
        return ["" for _ in prompts]

    def sample(
        self, prompts: Sequence[Prompt], params: SamplingParams, *, seed: int = 0
    ) -> list[list[str]]:
        """Return made-up answers of about the greatest length, having let their cache grow."""
        count, new = params.num_return_sequences, params.max_new_tokens
        asked = [len(self.data.encoder.prompt_ids(prompt)) for prompt in prompts[:PROMPTS]]
        lengths = sorted((length for length in asked for _ in range(count)), reverse=True)
        self.state.memory.begin("sample")
        grow_cache(self.models.model, self.state.memory, lengths[: self.batch_size], new)
        self.state.computes(decoded=(len(prompts) * count, self.batch_size, new))
        if not self.state.assumed:
            self.state.sampled = SampledCounts(len(prompts), count * len(prompts), new)
        return [[f"{number}" + " a" * (new - 1) for number in range(count)] for _ in prompts]

    def decode(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams, **options: Any
    ) -> list[Answer]:
        """Return made-up answers of the greatest length, having let their cache grow."""
        new, size = params.max_new_tokens, options.get("batch_size") or self.batch_size
        self.state.max_new_tokens = new
        lengths = sorted((len(prompt) for prompt in prompts), reverse=True)[:size]
        if lengths:
            grow_cache(self.models.model, self.state.memory, lengths, new)
            self.state.computes(decoded=(len(prompts), len(lengths), new))
        made_up = [1] * new
        return [Answer(list(made_up), [0.0] * new) for _ in prompts]
