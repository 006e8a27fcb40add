"""What a running stage may use, as its methods see it. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from llmft.api.events import StageResult
from llmft.api.method_settings import RewardConfig
from llmft.api.model_settings import OtherModel
from llmft.api.rows import (
    Answer,
    Encoded,
    EncodedClassification,
    EncodedPair,
    EncodedPrompt,
    EncodedUnpaired,
    Prompt,
    Row,
)
from llmft.api.train_settings import TrainSettings

if TYPE_CHECKING:
    import torch

    from llmft.api import RewardFunction


Number: TypeAlias = "float | torch.Tensor"
Sum: TypeAlias = "Number | tuple[Number, float]"


@dataclass(frozen=True, slots=True)
class TrainingSpan:
    """What a learning-rate schedule may depend on, beside the step.

    steps: optimiser steps of the whole training. warmup_steps: those in which the rate rises.
    learning_rate: the peak, `train.learning_rate`. greater_is_better: of the scores it is told.
    """

    steps: int
    warmup_steps: int
    learning_rate: float
    greater_is_better: bool = False


@dataclass(frozen=True, slots=True)
class TrainingStep:
    """Where a training is, as a callback sees it.

    step: optimiser steps taken; steps: of the whole training. parameters: those that are trained,
    by name. metrics: of this step alone: the objective's own, such as `loss` (none where the update
    was skipped), `grad_norm` before clipping, `learning_rate`, `epoch`; empty before the first.
    """

    step: int
    steps: int
    parameters: Mapping[str, torch.Tensor]
    metrics: Mapping[str, float] = field(default_factory=dict)


class Objective(Protocol):
    """What an alignment gives the training loop: rows and the loss of a batch of them."""

    def weight(self, batch: Sequence[Any]) -> float:
        """Return by what the summed loss is divided: label tokens, or pairs."""

    def loss(self, model: Any, batch: Sequence[Any]) -> tuple[torch.Tensor, Mapping[str, Sum]]:
        """Return the loss summed over a batch (a scalar that requires grad), and metrics' sums.

        A sum that is on a GPU is best left there, a scalar tensor: all are read at once. It is
        divided by the batch's weight, or, where it is a pair (sum, count), by its own count.
        """


class OnlineObjective(Objective, Protocol):
    """An objective that samples its own items: new ones at each step, for several updates.

    items_per_prompt: how many items are sampled for each prompt. rates_per_step: how many updates
    of a step have a learning rate of their own; 1, also where it is left out: all have the step's.
    """

    items_per_prompt: int
    rates_per_step: int

    def sample_rollouts(
        self,
        prompts: Sequence[Any],
        numbers: Sequence[int],
        step: int,
        stopping: Callable[[], bool],
    ) -> Sequence[Any]:
        """Return the items of this process's prompts, sampled from the model as it is now.

        numbers: which of the step's prompts they are; there may be none. The items must depend on
        the seed, the step and the number alone. stopping: call it now and then, and pass it on
        to `StageSampler.decode`.
        """

    def updates(self, items: int, step: int) -> Iterable[Sequence[int]]:
        """Return the numbers (0..items-1, of all processes) that each optimiser update takes."""

    def should_continue(self, means: Mapping[str, float]) -> bool:
        """Return whether the step's next update is to be taken, after one with these metrics."""

    def step_metrics(self) -> Mapping[str, tuple[float, float]]:
        """Return a step's own metrics as (sum, weight), of all processes; asked once a step."""

    def state(self) -> Mapping[str, Any]:
        """Return the state that a resumed run must restore, as JSON."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""


class StageData(Protocol):
    """The stage's rows, and how they become token ids."""

    @property
    def max_length(self) -> int | None:
        """Tokens in a row at most: the recipe's, or what the model has room for."""

    def rows(self) -> Sequence[Row]:
        """The training rows, as the stage's data set gives them; of streamed ones the first."""

    def held_out(self) -> Sequence[Row]:
        """The rows the stage is scored on; empty where the recipe does not evaluate."""

    def encode(self, rows: Sequence[Row]) -> Sequence[Encoded]:
        """The rows as token ids, long ones treated as the recipe says, counted and reported.

        Of streamed training rows it is what all of them are read as during training: hand it to
        `fit` as it is (`Alignment.supports_streaming`).
        """

    def encode_pairs(self, rows: Sequence[Row]) -> list[EncodedPair]:
        """Preference rows as token ids; a prompt too long loses its start, an answer nothing."""

    def encode_unpaired(self, rows: Sequence[Row]) -> list[EncodedUnpaired]:
        """Unpaired rows as token ids; a prompt too long loses its start, an answer nothing.

        Of a preference, both answers are taken: all the chosen ones before all the rejected.
        """

    def encode_classification(self, rows: Sequence[Row]) -> list[EncodedClassification]:
        """Rows to classify as token ids, as the tokenizer gives them, with their labels.

        A text too long loses its end, as tokenizers truncate it; a conversation its start.
        """

    def encode_prompts(self, rows: Sequence[Row], max_new_tokens: int) -> list[EncodedPrompt]:
        """The rows' prompts as token ids that leave room for an answer; a long one loses its start.

        Of a completion, the prompt is taken.
        """


class StageModels(Protocol):
    """The stage's model, and others on the same base weights. Each is made when first asked for."""

    @property
    def model(self) -> Any:
        """The base model with the stage's adapter attached, ready to train."""

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""

    @property
    def shares_prompts(self) -> bool:
        """Whether `label_nll` may compute a prompt once for two answers (`shared`)."""

    def reference(self) -> AbstractContextManager[Any]:
        """A context in which `model` answers as the reference does, before training starts.

        Where the stage starts from an earlier one, that is the adapter as it is then; else the
        base with the adapter off.
        """

    def reference_model(self) -> Any:
        """A frozen model that answers as the stage's start does, however far training has come.

        It shares the base's weights. The start is as `reference` has it.
        """

    @property
    def starts_as_reference(self) -> bool:
        """Whether `model`, not yet trained, must answer as `reference` does.

        So it is with `start_from`, and with an adapter that starts as the base.
        """

    def precision(self) -> AbstractContextManager[Any]:
        """A context in which the model computes as in a training step: autocast under `bf16`.

        `reference`, and what `fit` calls, are in it already.
        """

    def base_model(self) -> Any:
        """The base model alone, frozen: without the adapter, and what that stands on.

        It shares the base's weights where they are not trained.
        """

    def load_stage(self, name: str) -> Any:
        """A second model that shares this one's base weights, with an earlier stage's adapter.

        It holds what that stage's alignment added (a reward model's head), and is frozen.
        """

    def other_model(self, asked: OtherModel) -> Any:
        """A model with a base of its own, frozen, which a setting of the method names.

        It is loaded once, on the device, and reads the trained model's token ids.
        """


class StageSampler(Protocol):
    """Answers of the model as it is now."""

    def generate(
        self, prompts: Sequence[Prompt], max_new_tokens: int, *, model: Any = None
    ) -> list[str]:
        """The greedy answer to each prompt. model: default: the one that is trained."""

    def sample(
        self, prompts: Sequence[Prompt], params: SamplingParams, *, seed: int = 0
    ) -> list[list[str]]:
        """`num_return_sequences` answers to each prompt, sampled as `decode` does."""

    def decode(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        *,
        seed: Sequence[int],
        numbers: Sequence[int] | None = None,
        model: Any = None,
        batch_size: int | None = None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> list[Answer]:
        """One answer to each prompt (token ids), sampled with random numbers of its own.

        They follow from the seed and the answer's number (default: its place), so an answer does
        not depend on its batch. model: default: the one that is trained. With a top_p below 1, an
        answer holds the nucleus of each token, as `token_stats` takes it. Answers end where the
        model's own do, or at `params.stop_token_ids`. stopping: asked before each token.
        """


class StageLog(Protocol):
    """Remarks, progress and samples, for the trackers and the run folder."""

    def note(self, text: str) -> None:
        """Tell the trackers a remark that a person should read."""

    def progress(self, phase: str, done: int, total: int) -> None:
        """Tell how far a phase of the method's own has come; returns at once."""

    def add_samples(self, samples: Sequence[Mapping[str, Any]]) -> None:
        """Keep answers of an evaluation to be shown: `prompt`, `answer` and numbers of each."""


@dataclass(frozen=True, slots=True)
class RowScores:
    """The scores of a model on rows.

    scores: of each metric its `value`, `n` rows and 95 % interval, `low` to `high`. values: of each
    metric a value for each row, whose mean it is. rows: of each answer its `prompt`, `answer`,
    the `right` ones and its scores; empty where none was generated. generation: the settings of
    the answers, in GenerationConfig's names.
    """

    scores: Mapping[str, Mapping[str, float | int | None]]
    values: Mapping[str, Sequence[float]] = field(default_factory=dict)
    rows: Sequence[Mapping[str, Any]] = ()
    generation: Mapping[str, Any] = field(default_factory=dict)


class StageContext(Protocol):
    """What a running stage may use: its data, its models, a sampler, a log, and the loop."""

    name: str
    seed: int
    folder: Path
    train: TrainSettings
    fingerprint: str
    """Says what the stage is made from: settings, model, rows, stages it reads. What a task keeps
    to go on from is worth nothing with another one."""
    planned: bool
    """Whether this is `llmft plan`, whose model has no numbers: what others compute is left out."""

    @property
    def data(self) -> StageData:
        """The stage's rows, and how they become token ids."""

    @property
    def models(self) -> StageModels:
        """The stage's model, its reference, and the models of earlier stages."""

    @property
    def sampler(self) -> StageSampler:
        """Answers of the model as it is now."""

    @property
    def log(self) -> StageLog:
        """Remarks, progress and samples for the trackers."""

    def fit(self, items: Sequence[Any], objective: Objective) -> StageResult:
        """Score the adapter, train it on the items with the one training loop, score it again."""

    def fit_online(self, prompts: Sequence[Any], objective: OnlineObjective) -> StageResult:
        """Do what `fit` does with items that the objective samples: each step samples new ones."""

    def row_scores(self, *, base: bool = False) -> RowScores:
        """The scores of the model on the stage's rows, as a task's `ScoredTaskConfig` asks.

        base: of the base model, without the stage's adapter.
        """

    def stage_folder(self, name: str) -> Path:
        """The folder of an earlier stage that is finished."""

    def reward_function(self, config: RewardConfig) -> RewardFunction[Any]:
        """The reward function of a block in the method's own settings."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How answers are sampled, in GenerationConfig's names. temperature 0: greedy.

    top_k 0: all tokens. stop_token_ids: ids that end an answer, beside the model's own.
    vocabulary: ids from this one on are never sampled; default: the model's own number of them.
    """

    max_new_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    num_return_sequences: int = 1
    stop_token_ids: Sequence[int] = ()
    vocabulary: int | None = None
