"""An in-memory registry with small methods of every sort, so that no plugin is needed here."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from llmft_optimizers.of_bitsandbytes import llmft_optimizers as small
from llmft_optimizers.of_torch import llmft_optimizers as optimizers
from llmft_schedules.curves import llmft_schedules as curves
from llmft_schedules.greedy import llmft_schedules as greedy
from llmft_schedules.plateau import llmft_schedules as plateau
from pydantic import SerializeAsAny, model_validator

from llmft.api import (
    Adapter,
    AdapterConfig,
    Alignment,
    AlignmentConfig,
    Callback,
    CallbackConfig,
    Dataset,
    DatasetConfig,
    Field,
    Line,
    MetricConfig,
    MetricFunction,
    Optimizer,
    OptimizerConfig,
    PluginError,
    RewardConfig,
    RewardFunction,
    Schedule,
    ScheduleConfig,
    Share,
    StageRef,
    Task,
    TaskConfig,
    Tracker,
    TrackerConfig,
)


class LoraConfig(AdapterConfig):
    r: int = Field(8, ge=1, le=4096, description="the rank")
    lora_alpha: float = Field(16, gt=0, le=1e6, description="the scale")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="dropout before the adapter")
    target_modules: Line | list[Line] = Field("all-linear", description="which layers")
    use_rslora: bool = Field(False, description="divide by the root of r")


class PrefixConfig(AdapterConfig):
    num_virtual_tokens: int = Field(20, ge=1, le=10_000, description="the prefix' length")


class SftConfig(AlignmentConfig):
    label_smoothing: Share = Field(0.0, description="smoothing of the labels")


class PpoConfig(AlignmentConfig):
    reward_model: Annotated[Line | None, StageRef("reward_model")] = Field(
        None, description="who scores"
    )
    reward: SerializeAsAny[RewardConfig] | None = Field(None, description="what scores")
    kl_coef: float = Field(0.05, ge=0, le=100, description="the pull to the reference")


class CollectConfig(TaskConfig):
    num_return_sequences: int = Field(4, ge=2, le=26, description="answers to each prompt")


class RankConfig(TaskConfig):
    samples: Annotated[Line, StageRef("samples")] = Field(description="what is ranked")
    judge: SerializeAsAny[RewardConfig] | None = Field(None, description="who ranks")
    others: list[Annotated[Line, StageRef("samples")]] = Field(
        default_factory=list, description="what is ranked beside it"
    )


class LongerConfig(RewardConfig):
    target: int = Field(3, ge=1, le=100, description="the length that is wanted")


class FromStageConfig(DatasetConfig):
    stage: Annotated[Line, StageRef("preferences")] = Field(description="whose rows")


class JsonlConfig(DatasetConfig):
    path: Line = Field(description="the file")
    columns: dict[str, str] = Field(default_factory=dict, description="names of columns")
    kind: Literal["completion", "preference", "prompt"] = Field("completion", description="rows")

    @model_validator(mode="after")
    def _no_limit(self) -> JsonlConfig:
        if self.path == "-" and self.limit:
            raise ValueError("path '-' has no limit; drop limit")
        if self.path == "crash":
            raise KeyError("crash")
        return self


class Lora(Adapter[LoraConfig]):  # type: ignore[type-var]
    method = "lora"
    Config = LoraConfig
    supports_packing = True
    mergeable = True


class Qlora(Lora):
    method = "qlora"
    mergeable = False

    def load_options(self) -> dict[str, Any]:
        return {"load_in_4bit": True}


class Prefix(Adapter[PrefixConfig]):  # type: ignore[type-var]
    method = "prefix"
    Config = PrefixConfig
    supports_gradient_checkpointing = False
    supports_quantization = False


class Sft(Alignment[SftConfig]):  # type: ignore[type-var]
    method = "sft"
    Config = SftConfig
    rows = ("completion", "text", "chat")
    supports_packing = True
    supports_streaming = True


class Reward(Sft):
    method = "reward"
    rows = ("preference",)
    supports_streaming = False
    produces = "reward_model"


class Ppo(Alignment[PpoConfig]):  # type: ignore[type-var]
    method = "ppo"
    Config = PpoConfig
    rows = ("prompt",)


class Jsonl(Dataset[JsonlConfig]):  # type: ignore[type-var]
    method = "jsonl"
    Config = JsonlConfig
    rows = ("completion", "preference", "prompt")
    metrics: ClassVar[Any] = {"exact_match": None, "f1": None}

    def row_kind(self) -> Any:
        return self.config.kind


class FromStage(Dataset[FromStageConfig]):  # type: ignore[type-var]
    method = "from_stage"
    Config = FromStageConfig
    rows = ("preference",)
    metrics: ClassVar[Any] = {"exact_match": None}


class Collect(Task[CollectConfig]):  # type: ignore[type-var]
    method = "collect"
    Config = CollectConfig
    rows = ("prompt",)
    produces = "samples"


class Rank(Task[RankConfig]):  # type: ignore[type-var]
    method = "rank"
    Config = RankConfig
    produces = "preferences"


class Longer(RewardFunction[LongerConfig]):  # type: ignore[type-var]
    method = "longer"
    Config = LongerConfig


class WordsConfig(MetricConfig):
    most: int = Field(5, ge=1, le=100, description="words at most")


class CharsConfig(MetricConfig):
    most: int = Field(ge=1, le=100, description="characters at most")


class Words(MetricFunction[WordsConfig]):  # type: ignore[type-var]
    method = "words"
    Config = WordsConfig
    greater_is_better = False

    def values(self) -> tuple[str, ...]:
        if self.config.most == 13:
            raise ZeroDivisionError("thirteen")
        return ("mean", "most") if self.config.most > 50 else ()


class Chars(Words):
    method = "chars"
    Config = CharsConfig


class HalvingConfig(ScheduleConfig):
    at: int = Field(5, ge=1, le=100, description="the step at which the rate is halved")


class Halving(Schedule[HalvingConfig]):  # type: ignore[type-var]
    method = "halving"
    Config = HalvingConfig

    def check(self, train: Any) -> Any:
        if self.config.at == 13:
            raise ZeroDivisionError("thirteen")
        return ()

    def factor(self, step: int, span: Any) -> float:
        return 1.0 if step < self.config.at else 0.5


class Steps(Optimizer[OptimizerConfig]):
    method = "steps"
    Config = OptimizerConfig

    def make(self, groups: Any, train: Any) -> Any:
        raise NotImplementedError


class Missing(Steps):
    method = "missing"
    package = "no_such_package"


class WatchConfig(CallbackConfig):
    every: int = Field(5, ge=1, le=100, description="steps between two looks")


class Watch(Callback[WatchConfig]):  # type: ignore[type-var]
    method = "watch"
    Config = WatchConfig

    def check(self, train: Any) -> Any:
        if self.config.every == 13:
            raise ZeroDivisionError("thirteen")
        if train.max_steps is not None and self.config.every > train.max_steps:
            yield ("every",), "it never looks", "lower it"


class Follow(Watch):
    method = "follow"
    follows_scores = True


class Average(Watch):
    method = "average"
    gives_weights = True

    def weights(self, use: Any) -> Any:
        return {}


class Console(Tracker[TrackerConfig]):
    method = "console"
    Config = TrackerConfig


class Jsonlines(Console):
    method = "jsonl"


for _cls in (Lora, Prefix, Sft, Ppo, Jsonl, FromStage, Collect, Rank, Longer):
    _cls.__abstractmethods__ = frozenset()  # what trains and loads is not looked at here
for _cls in (Qlora, Reward):
    _cls.__abstractmethods__ = frozenset()


class FakeRegistry:
    """The registry's interface, over a dictionary."""

    methods: ClassVar[dict[str, dict[str, Any]]] = {
        "adapter": {"lora": Lora, "qlora": Qlora, "prefix": Prefix},
        "alignment": {"sft": Sft, "reward": Reward, "ppo": Ppo},
        "task": {"collect": Collect, "rank": Rank},
        "reward": {"longer": Longer},
        "dataset": {"jsonl": Jsonl, "from_stage": FromStage},
        "optimizer": {cls.method: cls for cls in (*optimizers(), *small(), Steps, Missing)},
        "schedule": {cls.method: cls for cls in (*curves(), *plateau(), *greedy(), Halving)},
        "callback": {"watch": Watch, "follow": Follow, "average": Average},
        "metric": {"words": Words, "chars": Chars},
        "tracker": {"console": Console, "jsonl": Jsonlines},
        "plugin": {"timer": object},
    }
    failing: ClassVar[dict[str, str]] = {"wandb": "No module named 'wandb'"}

    def names(self, kind: str) -> list[str]:
        return sorted(self.methods[kind])

    def records(self, load: bool = True) -> list[Any]:
        return []

    def cross_cutting(self, names: Any) -> None:
        return None

    def broken(self, kind: str) -> dict[str, str]:
        return dict(self.failing)

    def method(self, kind: str, name: str) -> Any:
        if name in self.failing:
            raise PluginError("E501", f"'{name}' is broken: {self.failing[name]}", fix="reinstall")
        if name not in self.methods[kind]:
            have = ", ".join(self.names(kind))
            raise PluginError("E504", f"no {kind} is called '{name}'; installed: {have}")
        return self.methods[kind][name]


GOOD = """\
recipe: 1
name: rlhf-trivia
seed: 17
model:
  path: org/model
  dtype: bfloat16
  quantization: {load_in_4bit: false}
stages:
  - name: sft
    adapter: {method: lora, r: 16, lora_alpha: 32}
    alignment: {method: sft}
    data: {method: jsonl, path: rows.jsonl, split: train}
    train:
      num_train_epochs: 1
      learning_rate: 2e-4
      per_device_train_batch_size: 8
    evaluate: {metrics: [exact_match, f1], limit: 500}
  - name: reward
    adapter: {method: lora, r: 8}
    alignment: {method: reward}
    data: {method: jsonl, path: hh.jsonl, kind: preference}
  - name: ppo
    start_from: sft
    alignment: {method: ppo, reward_model: reward, kl_coef: 0.05}
    data: {method: jsonl, path: prompts.jsonl, kind: prompt}
trackers:
  - method: console
"""
