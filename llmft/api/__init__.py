"""The public contract: what a plugin author derives from. Imports no torch.

A plugin is a module with an entry point in one of the groups `llmft.adapters`,
`llmft.alignments`, `llmft.tasks`, `llmft.rewards`, `llmft.datasets`, `llmft.optimizers`,
`llmft.schedules`, `llmft.callbacks`, `llmft.metrics`, `llmft.trackers` (the entry point's name is
the method's) or `llmft.plugins`, whose hooks return classes derived from the ones below. See
`llmft.testing` for the kit that checks a method against its contract, and `llmft.toolkit` for
building blocks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

import pluggy
from pydantic import Field

from llmft.api.context import (
    Objective,
    OnlineObjective,
    RowScores,
    SamplingParams,
    StageContext,
    StageData,
    StageLog,
    StageModels,
    StageSampler,
    TrainingSpan,
    TrainingStep,
)
from llmft.api.errors import (
    CheckpointError,
    DataError,
    EnvironmentFault,
    LeftOutRow,
    LlmftError,
    PluginError,
    RecipeError,
    StageError,
    WaitsForPeople,
)
from llmft.api.evaluate_settings import MetricConfig, ScoredTaskConfig
from llmft.api.events import Progress, RunInfo, StageInfo, StageResult
from llmft.api.method_settings import (
    AdapterConfig,
    AlignmentConfig,
    CallbackConfig,
    DatasetConfig,
    RewardConfig,
    StageRef,
    TaskConfig,
    TrackerConfig,
)
from llmft.api.model_settings import ModelSource, OtherModel
from llmft.api.rows import (
    Answer,
    ChatRow,
    ClassificationRow,
    CompletionRow,
    Conversation,
    Encoded,
    EncodedClassification,
    EncodedPair,
    EncodedPrompt,
    EncodedUnpaired,
    Label,
    Message,
    PreferenceRow,
    Prompt,
    PromptRow,
    Row,
    RowKind,
    SampledAnswer,
    ScoredAnswer,
    TextRow,
    UnpairedRow,
)
from llmft.api.settings import Line, Settings, Share
from llmft.api.train_settings import OptimizerConfig, ScheduleConfig, TrainSettings

if TYPE_CHECKING:
    import torch

__all__ = [
    "Adapter", "AdapterConfig", "Alignment", "AlignmentConfig", "Answer", "Callback",
    "CallbackConfig", "ChatRow", "CheckpointError", "ClassificationRow", "CompletionRow",
    "Conversation", "DataError", "Dataset", "DatasetConfig", "Encoded", "EncodedClassification",
    "EncodedPair", "EncodedPrompt", "EncodedUnpaired", "EnvironmentFault", "Field", "Label",
    "LeftOutRow",
    "Line", "LlmftError", "Message", "Metric", "MetricConfig", "MetricFunction", "ModelSource",
    "Objective", "OnlineObjective", "Optimizer", "OptimizerConfig",
    "OtherModel",
    "PluginError", "PreferenceRow", "Progress", "Prompt", "PromptRow", "RecipeError", "Refusal",
    "RewardConfig",
    "RewardFunction", "Row", "RowKind", "RowScores", "RunInfo", "SampledAnswer", "SamplingParams",
    "Schedule", "ScheduleConfig", "ScoredAnswer", "ScoredTaskConfig", "Settings", "Share",
    "StageContext", "StageData", "StageError", "StageInfo", "StageLog", "StageModels", "StageRef",
    "StageResult", "StageSampler", "Task", "TaskConfig", "TextRow", "Tracker", "TrackerConfig",
    "TrainSettings", "TrainingSpan", "TrainingStep", "UnpairedRow", "WaitsForPeople", "hookimpl",
]  # fmt: skip

API_VERSION = 1
hookimpl = pluggy.HookimplMarker("llmft")

# --- the kinds -------------------------------------------------------------------------------

C = TypeVar("C", bound=Settings)


class _Kind(ABC, Generic[C]):
    method: ClassVar[str]
    Config: ClassVar[type[Settings]]

    def __init__(self, config: C) -> None:
        self.config = config

    def code(self) -> Mapping[str, str | Sequence[str]]:
        """Return the files of code that its settings name, one or several, by the setting's name.

        Each runs only where the command line says `--trust file:FILE`; see `toolkit.run_trusted`.
        """
        return {}

    @classmethod
    def capabilities(cls) -> dict[str, Any]:
        """Return what this class declares that it can do, for `llmft show`."""
        return {
            name: getattr(cls, name)
            for base in reversed(cls.__mro__)
            for name in getattr(base, "__annotations__", {})
            if name not in ("method", "Config", "sources") and not name.startswith("_")
            and isinstance(getattr(cls, name, None), bool | str | tuple)
        }  # fmt: skip


Refusal = tuple[tuple[str | int, ...], str, str]
"""A key inside a method's block, such as ("target_modules", 0), the fact, and the suggested fix."""


class Adapter(_Kind[C]):
    """What is trained: a small set of parameters attached to a frozen base model.

    It need not be a PEFT type: `attach` may return any module that answers like the base model.
    Full fine-tuning is an adapter too, one that declares `trains_base`.
    """

    mergeable: ClassVar[bool] = False
    trains_base: ClassVar[bool] = False
    """Whether it trains weights of the base itself, or some of them. Then `attach` and `load` let
    them require grad, `save` writes the whole model as transformers does, and `disabled` is never
    asked: whoever needs the base as it was gets a copy, which is loaded on demand."""
    supports_gradient_checkpointing: ClassVar[bool] = True
    supports_quantization: ClassVar[bool] = True
    supports_packing: ClassVar[bool] = False
    """Whether batches may be padding-free or packed: rows in one sequence, kept apart."""
    supports_shared_prompt: ClassVar[bool] = False
    """Whether two answers may share one computation of their prompt: a token's change depends on
    what comes before it, and not on where the row is in the batch."""

    def load_options(self) -> Mapping[str, Any]:
        """Return options for loading the base (BitsAndBytesConfig's names), beside the recipe's."""
        return {}

    def virtual_tokens(self) -> int:
        """Return how many of the model's positions the adapter takes in front of every row."""
        return 0

    def check(self, model: Any) -> Iterable[Refusal]:
        """Yield what cannot work on this model: (key's parts, what is wrong, fix); see Refusal.

        model: the base on torch's meta device, without weights; `is_quantized` says whether its
        linear layers will be stored in 4 or 8 bits.
        """
        return ()

    def on_small_copy(self) -> Adapter[Any] | None:
        """Return these settings as they fit a small copy of any model; None: it has no such form.

        Where there is one, the adapter is tried on a small random copy of the model's architecture
        before weights are loaded, and refused where it fails: few layers, narrow ones, and a
        vocabulary of 512.
        """
        return None

    def trains_in_float32(self) -> bool:
        """Return whether what is trained gets float32 values where the base's type is narrower.

        False leaves it in the base's type, where updates smaller than its rounding are lost.
        """
        return True

    def trains_new_tokens(self, model: Any) -> bool:
        """Return whether it trains the rows of tokens that the recipe adds to the tokenizer.

        They are in the embedding, and in the output layer where that has weights of its own;
        `toolkit.new_token_ids` tells which. model: as for `check`. A recipe that adds tokens is
        refused where it does not.
        """
        return False

    def starts_as_base(self) -> bool:
        """Return whether a freshly attached adapter changes nothing: the model answers as the base.

        Preference training then checks that its first loss is that of a policy equal to its
        reference.
        """
        return False

    @abstractmethod
    def attach(self, model: Any) -> Any:
        """Return the base model with a new adapter attached; only what is trained requires grad."""

    @abstractmethod
    def save(self, model: Any, folder: Path) -> None:
        """Write the adapter, and nothing of the base, into an empty folder (safetensors, JSON)."""

    @abstractmethod
    def load(self, model: Any, folder: Path) -> Any:
        """Return the base model with a saved adapter attached, its parameters requiring grad."""

    def check_peft(
        self, model: Any, settings: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]]
    ) -> Iterable[Refusal]:
        """Yield in what an adapter that PEFT saved is another one than these settings describe.

        `load` is given its folder where nothing is yielded. model: as for `check`. settings: its
        adapter_config.json, whose strings may be anybody's. tensors: the shapes in its
        adapter_model.safetensors, by name.
        """
        what = f"'{self.method}' cannot go on from an adapter that PEFT saved"
        yield ("method",), what, "pick lora, or drop start_from"

    def parameter_groups(
        self, model: Any, train: TrainSettings
    ) -> Sequence[Mapping[str, Any]] | None:
        """Return the optimiser's groups, as torch.optim takes them; None: one, of all trainable."""
        return None

    @abstractmethod
    def disabled(self, model: Any) -> AbstractContextManager[Any]:
        """Return a context in which the model answers as the base would without the adapter."""

    def merge(self, model: Any) -> Any:
        """Return a plain base model with the adapter's change written into its weights."""
        raise NotImplementedError(f"'{self.method}' cannot be merged")


class _Work(_Kind[C]):
    def max_new_tokens(self) -> int:
        """Return the most tokens that it samples after a prompt, for which there must be room."""
        return 0

    def smoke_overrides(self) -> Mapping[str, Any]:
        """Return settings that keep `llmft run --smoke` quick, such as shorter answers.

        Its model is tiny and random, and no person is there to answer.
        """
        return {}


class Alignment(_Work[C]):
    """What is optimised: which rows are read, what loss they give, what comes out."""

    rows: ClassVar[tuple[RowKind, ...]]
    produces: ClassVar[str] = "policy"
    supports_packing: ClassVar[bool] = False
    supports_token_budget: bool = True
    """Whether `train.per_device_train_tokens` may deal a step's rows to forward passes: its items
    are there before training, and the loss of a row is the same beside whichever others. Its
    settings may decide it."""
    supports_shard_base: ClassVar[bool] = True
    """Whether `train.shard_base` may divide the model among processes: all of them then take the
    same passes through it, which is so where no process samples answers of its own."""
    supports_length_groups: ClassVar[bool] = True
    """Whether `train.train_sampling_strategy: group_by_length` may order its items: they are there
    before training."""
    supports_streaming: ClassVar[bool] = False
    """Whether `train` hands what `context.data.encode` returns to `context.fit` and does nothing
    else with it: of streamed rows that is no list, and has no end."""
    evaluate_generates: bool = False
    """Whether `evaluate` generates answers: during training it is then asked for its metrics as
    rarely as `evaluate.generate_every` says. Its settings may decide it."""
    greater_is_better: ClassVar[Mapping[str, bool]] = {}
    """Of metrics that `evaluate` returns, whether more is better: each may choose the best
    checkpoint. A metric that is not here has to be given a direction in the recipe."""
    own_loss: ClassVar[bool] = False
    """Whether the `loss` of held-out rows is one that `evaluate` returns, as where no token is
    predicted; there then is no perplexity, and no answer to score."""
    value_ranges: ClassVar[Mapping[str, tuple[float, float]]] = {}
    """Of metrics that `evaluate` returns, between which numbers each is, the bounds included."""
    corpus_metrics: ClassVar[tuple[str, ...]] = ()
    """Of metrics that `evaluate` returns as a value for each row, those that are no mean over rows:
    the values are a jackknife's, and say nothing of a part of the rows."""

    def row_kinds(self) -> Sequence[RowKind]:
        """Return which of the kinds in `rows` it reads under these settings."""
        return self.rows

    @abstractmethod
    def train(self, context: StageContext) -> StageResult:
        """Train the stage's adapter, and return what was made."""

    def evaluate(self, context: StageContext) -> Mapping[str, float | Sequence[float]]:
        """Return metrics of the method's own, on held-out rows: before, after, during training.

        Each is a number, or a value for each held-out row: the score is their mean, and has a 95 %
        interval. During training it must leave the model and the method as they are. Random numbers
        are put back, and what it adds to the samples is left out. Of several processes each
        calls it, with the same rows, and the first one's values count; see `toolkit.dealt`.
        """
        return {}

    def check(self, model: Any) -> Iterable[Refusal]:
        """Yield what cannot work on this model: (key's parts, what is wrong, fix); see Refusal.

        model: the base on torch's meta device, without weights.
        """
        return ()

    def prepare(self, context: StageContext) -> None:
        """Find out from the training rows what `extend` needs.

        `llmft plan` asks it before the model is there; `train` does so by itself.
        """

    def recall(self, folder: Path) -> None:
        """Take up what `train` wrote into a stage's folder and `extend` needs.

        It is asked where a checkpoint of a stage is loaded that is not trained now.
        """

    def extend(self, model: Any) -> None:
        """Add to the model what is trained beside the adapter, such as a head."""

    def parameter_groups(self, model: Any, train: TrainSettings) -> Sequence[Mapping[str, Any]]:
        """Return groups, as torch.optim takes them, of what `extend` added; (): as the adapter."""
        return ()

    def save(self, model: Any, folder: Path) -> None:
        """Write what `extend` added into a folder (safetensors, JSON)."""

    def load(self, model: Any, folder: Path) -> None:
        """Add to the model what `save` wrote."""


class Task(_Work[C]):
    """A stage's work that trains nothing: it reads rows or an earlier stage, and writes a file.

    The file is `rows.jsonl` in the stage's folder. The stage's model is that of the stage named in
    `start_from`, frozen, or the base.
    """

    rows: ClassVar[tuple[RowKind, ...]] = ()
    """The kinds of rows it reads; empty: the stage has no data block."""
    produces: ClassVar[str]

    def reads(self) -> Mapping[str, str]:
        """Return what it reads beside rows and stages, each with a digest or a version.

        It is part of the stage's fingerprint: where it has changed, the stage runs again. Raises an
        LlmftError where something is not there; a run is refused then, before it starts.
        """
        return {}

    def contacts(self) -> Sequence[str]:
        """Return what a person should know of hosts that it contacts, before a run starts."""
        return ()

    def check(self) -> Iterable[Refusal]:
        """Yield what cannot work: (key's parts, what is wrong, fix); see Refusal.

        It is asked before a run starts, and may import what is heavy.
        """
        return ()

    @abstractmethod
    def run(self, context: StageContext) -> StageResult:
        """Write the stage's rows, and return what was made."""


class RewardFunction(_Kind[C]):
    """What scores an answer, such as a rule; higher is better. The `weight` is its caller's."""

    def start(self, context: StageContext) -> None:
        """Take what it needs of the stage that it scores in; called before the first score."""

    def check(self, columns: Collection[str] | None) -> Iterable[Refusal]:
        """Yield what cannot work in these settings: (key's parts, what is wrong, fix); see Refusal.

        columns: what the rows give beside prompts and right answers, by name; None where that is
        not known. It is asked before a weight is loaded, and only where the files that `code`
        names may run.
        """
        return ()

    @abstractmethod
    def score(self, prompt: Prompt, completion: str, answers: Sequence[str]) -> float:
        """Return the reward of a completion. answers: the right ones, where they are known."""

    def score_batch(self, batch: Sequence[SampledAnswer]) -> Sequence[float]:
        """Return the reward of each sampled answer: by `score`, unless a method knows better."""
        return [self.score(one.prompt, one.completion, one.answers) for one in batch]


Metric = Callable[[str, Sequence[str]], float]


class Dataset(_Kind[C]):
    """How raw rows become rows of a kind, such as completions or preferences, and their metrics.

    metrics: name -> function of (the model's answer, the right answers) giving a score in [0, 1];
    more is better.
    """

    rows: ClassVar[tuple[RowKind, ...]]
    held_out_split: ClassVar[str] = "validation"
    metrics: Mapping[str, Metric] = {}
    upstream: Mapping[str, Path] = {}
    """The folder of each earlier stage that a setting marked with StageRef names, by that name."""
    sources: Sequence[Dataset[Any]] = ()
    """The data sets that its settings choose, in order. Where there are some, the rows are theirs:
    each is read by its own settings, and `mixture` says how they are put together. Its metrics are
    those that all of them share."""

    def check(self) -> Iterable[Refusal]:
        """Yield what cannot work in these settings: (key's parts, what is wrong, fix); see Refusal.

        It is asked when the recipe is read, before `sources` is there.
        """
        return ()

    def mixture(self, counts: Sequence[int], seed: int) -> Sequence[tuple[int, int]]:
        """Return which row of which source is where in the training rows: (source, row), from 0.

        counts: the rows of each source. A row may come several times, or not at all. Default: each
        row once, source after source.
        """
        return [(number, row) for number, count in enumerate(counts) for row in range(count)]

    def unlabelled(self, record: Mapping[str, Any], origin: str) -> Row:
        """Return one record as a row to be classified, whose label need not be there.

        Raises DataError as `row` does.
        """
        return self.row(record, origin)

    def is_local(self) -> bool:
        """Return whether its records are read from this machine, without any network.

        `llmft validate` then reads the first ones; those of others only a run reads.
        """
        return False

    @abstractmethod
    def records(self, split: str) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Yield the raw records of a split, each with its origin (`file:line`).

        Raises DataError where there is no such split, or a file cannot be read.
        """

    @abstractmethod
    def row(self, record: Mapping[str, Any], origin: str) -> Row:
        """Return one record as a row; raise DataError naming the origin if it cannot be used."""

    def pin(self) -> str:
        """Return what changes where the records of streamed data change, without reading them all.

        A run that goes on compares it, beside the first rows. Such as commits, or files' sizes.
        """
        return ""

    def example_records(self) -> Sequence[Mapping[str, Any]]:
        """Return a few made-up records as these settings read them, for `llmft run --smoke`.

        They are written into a folder of JSON lines that `path` then names.
        """
        return ()

    def ask(self, question: str) -> Prompt:
        """Return a person's question as a prompt of this data set's form, for `llmft generate`."""
        return question

    def row_kind(self) -> RowKind:
        """Return which of the kinds in `rows` this recipe's settings give."""
        return self.rows[0]


class Optimizer(_Kind[C]):
    """What moves the parameters along their gradients: an optimiser as torch has them.

    Its learning rate is that of its groups, which llmft sets before each step. An optimiser that
    trains other weights than those to be used, as schedule-free ones do, has the methods `train`
    and `eval` that switch: llmft scores, saves and returns a model after `eval`, and goes on with
    the weights before, to the bit.
    """

    package: ClassVar[str] = ""
    """The module that it needs beside torch; where it is not installed, `validate` says so."""
    supports_cpu: ClassVar[bool] = True
    """Whether it works without a GPU; `--smoke` takes adamw_torch in its place where it does not
    and there is none."""
    group_state: ClassVar[tuple[str, ...]] = ()
    """The entries of its groups that change in training, numbers or truth values, such as a count
    of steps. Checkpoints hold them, and the tensors and numbers of its `state`; nothing else of it.
    Where tensors of the state are of a class of their own, such as quantised ones, or in memory of
    their own, the optimiser has a method `init_state(group, parameter, group_number, number)` that
    sets the state of a parameter up: what a checkpoint holds is then copied into it.
    """

    def check(self, train: TrainSettings) -> Iterable[Refusal]:
        """Yield what cannot work beside other settings: (key's parts below train, what, fix)."""
        return ()

    @abstractmethod
    def make(
        self, groups: Sequence[Mapping[str, Any]], train: TrainSettings
    ) -> torch.optim.Optimizer:
        """Return the optimiser of exactly these groups' parameters.

        groups: as torch.optim takes them; a group's own `lr` and `weight_decay` go before those of
        `train`. Raises StageError where it cannot train such parameters.
        """

    def planned(self) -> Optimizer[Any]:
        """Return one with a state of the same size that runs on fake tensors, for `llmft plan`."""
        return self

    def state_bytes(self, parameter: torch.Tensor) -> int | None:
        """Return the bytes of its state of a parameter; None: `plan` runs it, and counts."""
        return None


class Schedule(_Kind[C]):
    """How the learning rate moves: a function of the step, and of the last evaluation if it asks.

    A class writes `factor`, or `rates` where the groups of parameters are not to move together.
    Each training has an object of its own.
    """

    supports_warmup: ClassVar[bool] = True
    """Whether it has a warm-up; without one, `train.warmup_steps` and `warmup_ratio` are refused
    beside it."""
    depends_on_steps: ClassVar[bool] = True
    """Whether the rate at a step depends on how many there are. Where it does not, a finished stage
    can be trained longer."""
    follows_scores: ClassVar[bool] = False
    """Whether `scored` is to be called: the stage then has to be scored during training."""

    def check(self, train: TrainSettings) -> Iterable[Refusal]:
        """Yield what cannot work beside other settings: (key's parts below train, what, fix)."""
        return ()

    def last_steps(self) -> int:
        """Return how many last steps it needs for itself, behind the warm-up."""
        return 0

    def smoke_overrides(self) -> Mapping[str, Any]:
        """Return settings that fit a training of a few steps, for `llmft run --smoke`."""
        return {}

    def factor(self, step: int, span: TrainingSpan) -> float:
        """Return what the peak rate is multiplied by in an optimiser step (0..steps-1), from 0 up.

        It is also asked for `steps`, which no update uses. A resumed training asks for the step it
        goes on at: the factor may not depend on having been asked for earlier ones.
        """
        raise NotImplementedError(f"'{self.method}' has no 'factor'")

    def rates(self, step: int, base: Sequence[float], span: TrainingSpan) -> Sequence[float]:
        """Return the learning rate of each of the optimiser's groups in a step.

        base: the groups' own peaks; most often all are `learning_rate`. Step 0 is asked for first.
        """
        factor = self.factor(step, span)
        return [rate * factor for rate in base]

    def scored(self, value: float, span: TrainingSpan) -> None:
        """Take in the score of an evaluation: the loss, or `metric_for_best_model`."""

    def state(self) -> Mapping[str, Any]:
        """Return the state that a resumed training must restore, as JSON; {}: none."""
        return {}

    def restore(self, state: Mapping[str, Any], span: TrainingSpan) -> None:
        """Restore what `state` returned, after step 0 was asked for; the span may be another."""


class Callback(_Kind[C]):
    """What acts in a stage's training after each optimiser step: a step hook.

    It reads the step, the trained parameters and the metrics, and changes none of them; random
    numbers are put back after each call. It may end the training, and give other weights to be
    used. Each training has an object of its own. Of several processes each has one, and all see the
    same numbers; the training ends where one of them says so. TrainerCallback's names.
    """

    gives_weights: ClassVar[bool] = False
    """Whether `weights` gives some; a stage has one such callback at most."""
    follows_scores: ClassVar[bool] = False
    """Whether it needs `on_evaluate`: the stage then has to be scored during training."""
    depends_on_steps: ClassVar[bool] = False
    """Whether what it does at a step depends on how many there are. Where it does, a finished stage
    cannot be trained longer."""

    def check(self, train: TrainSettings) -> Iterable[Refusal]:
        """Yield what cannot work beside these settings: (key's parts in its block, what, fix)."""
        return ()

    def smoke_overrides(self) -> Mapping[str, Any]:
        """Return settings that fit a training of a few steps, for `llmft run --smoke`."""
        return {}

    def state_bytes(self, parameter: torch.Tensor) -> int:
        """Return the bytes that it holds of a trained parameter, for `llmft plan`."""
        return 0

    def on_train_begin(self, training: TrainingStep) -> None:
        """Take in the parameters before the first step; a resumed training then restores."""

    def on_step_end(self, training: TrainingStep) -> None:
        """Take in a step that was just taken, before anything is scored or saved.

        Raises StageError where the training is not to go on; nothing of the step is saved then.
        """

    def on_evaluate(self, training: TrainingStep, scores: Mapping[str, float]) -> None:
        """Take in the scores of held-out rows after a step, where the stage is scored then."""

    def should_continue(self) -> bool:
        """Return whether training goes on; False ends it as its last step would, with scores.

        It is asked after each step and its evaluation, more than once, and after a restore: the
        answer follows from the state.
        """
        return True

    def stop_reason(self) -> str:
        """Return why it does not go on, for a person: asked where `should_continue` is False."""
        return f"'{self.method}' ended the training"

    def weights(
        self, use: Literal["evaluation", "checkpoint", "result"]
    ) -> Mapping[str, torch.Tensor]:
        """Return the weights to be used in place of the trained ones, by the parameters' names.

        Any floating type; a parameter that is left out, or all ({}), is used as it is trained. A
        checkpoint keeps both; its best one is scored, and becomes the result, with these.
        """
        return {}

    def state(self) -> Mapping[str, Any]:
        """Return what a resumed training must restore: tensors, and plain data as in JSON."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned, after `on_train_begin`; the tensors are on the CPU."""


class MetricFunction(_Kind[C]):
    """What scores a model's answers to held-out rows: each by itself, or all of them together.

    A class writes one of `score` and `score_corpus`. The model's answers, the mean over rows, the
    count of rows and the 95 % interval are llmft's. Of several processes each asks it, with the
    same answers, and the first one's values count.
    """

    greater_is_better: ClassVar[bool] = True
    """Whether more of it is better: what `metric_for_best_model` goes by."""
    value_range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    """Between which numbers every value is, the bounds included; infinite where there is none."""
    needs_references: ClassVar[bool] = True
    """Whether a row without a right answer cannot be scored; such a row then is a DataError."""

    def values(self) -> Sequence[str]:
        """Return the names of the values that it gives, where these are several.

        Their scores are called `<metric>_<value>`. Default: (): one value, called as the metric.
        """
        return ()

    def score(self, answer: ScoredAnswer) -> float | Mapping[str, float]:
        """Return the value of one answer, or where `values` names some, each of them by its name.

        It is a finite number within `value_range`, and depends on nothing but the answer.
        """
        raise NotImplementedError(f"'{self.method}' scores all answers together")

    def score_corpus(self, answers: Sequence[ScoredAnswer]) -> float | Mapping[str, float]:
        """Return the value of all answers together (one at least), or each value by its name.

        It does not depend on their order. For the 95 % interval it is asked again, without some
        of them: 100 times at most (jackknife), and only before and after training.
        """
        raise NotImplementedError(f"'{self.method}' scores each answer by itself")

    @classmethod
    def is_of_corpus(cls) -> bool:
        """Return whether it scores all answers together."""
        return cls.score_corpus is not MetricFunction.score_corpus


class Tracker(_Kind[C]):
    """Where a run is reported. A tracker that fails is dropped; it never ends a run."""

    contacts: str | None = None
    """The network host that it talks to under these settings, which `plan` and `run` show; '' where
    it talks to none. None: not declared, which they show too."""

    def run_started(self, run: RunInfo) -> None:
        """Receive the start of a run."""

    def stage_started(self, stage: StageInfo) -> None:
        """Receive the start of a stage's training."""

    def progress(self, progress: Progress) -> None:
        """Receive the progress of a phase; called often, so return soon."""

    def scored(self, stage: str, when: str, metrics: Mapping[str, float]) -> None:
        """Receive the scores of a stage `before` or `after` training."""

    def note(self, text: str) -> None:
        """Receive a remark that a person should read."""

    def stage_finished(self, stage: str, result: Mapping[str, Any]) -> None:
        """Receive what a stage made: its StageResult's fields, its folder, samples of answers."""

    def run_finished(self, summary: Mapping[str, Any]) -> None:
        """Receive how the run ended."""
