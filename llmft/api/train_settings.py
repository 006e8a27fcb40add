"""The settings of `train`, with the names of TrainingArguments, and of optimisers and schedules."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SerializeAsAny, field_validator, model_validator

from llmft.api.settings import Interval, Line, Settings, Share

_SMALL_STATES = "; of small states there are adamw_torch_8bit, adamw_torch_4bit, adafactor and muon"
_PROJECTING = (
    "its projections are objects that no checkpoint of tensors and numbers holds, so that a resumed"
    f" run would be another{_SMALL_STATES}"
)
_WITHIN_BACKWARD = (
    "it moves weights within the backward pass, where gradients are neither accumulated nor clipped"
    f" nor checked{_SMALL_STATES}"
)
NOT_OFFERED = {
    "galore_": _PROJECTING,
    "apollo_": _PROJECTING,
    "lomo": _WITHIN_BACKWARD,
    "adalomo": _WITHIN_BACKWARD,
    "schedule_free_radam": "its first steps move nothing; take schedule_free_adamw with a warm-up",
}
"""How transformers' names of optimisers begin that are not here, and why."""

SCHEDULE_KWARGS = {
    "cosine": ("num_cycles",),
    "cosine_with_restarts": ("num_cycles",),
    "cosine_with_min_lr": ("num_cycles", "min_lr", "min_lr_rate"),
    "cosine_warmup_with_min_lr": ("num_cycles", "min_lr", "min_lr_rate", "warmup_lr_rate"),
    "polynomial": ("lr_end", "power"),
    "inverse_sqrt": ("timescale",),
    "warmup_stable_decay": (
        "num_decay_steps", "warmup_type", "decay_type", "min_lr_ratio", "num_cycles",
    ),
    "reduce_lr_on_plateau": (
        "factor", "patience", "threshold", "threshold_mode", "cooldown", "min_lr",
    ),
    "greedy": (
        "factor", "patience", "threshold", "threshold_mode", "cooldown", "warmup", "min_lr",
        "max_lr", "eps", "smooth", "window_size", "reset_start",
    ),
}  # fmt: skip
"""The settings of each learning-rate schedule that has some, by transformers' names."""

Shape = Literal["linear", "cosine", "1-sqrt"]
SamplingStrategy = Literal["random", "sequential", "group_by_length"]


class OptimizerConfig(Settings):
    """Base of every optimiser's settings; the rate, betas and so on are those of `train`."""

    method: Line = Field(description="which optimizer method")


class ScheduleConfig(Settings):
    """Base of every learning-rate schedule's settings."""

    method: Line = Field(description="which schedule method")


class LrSchedulerKwargs(Settings):
    """Settings of a learning-rate schedule: transformers' names, and torch's for the plateau.

    What is left out is as transformers has it.
    """

    num_cycles: float | None = Field(
        None,
        gt=0,
        le=10_000,
        description="waves of the cosine, 0.5: half a one; for cosine_with_restarts, whole ones",
    )
    min_lr: float | None = Field(
        None, ge=0, le=10, description="the rate at the end, or below which none is lowered"
    )
    min_lr_rate: float | None = Field(
        None, ge=0, lt=1, description="the rate at the end as a share of the peak; or give min_lr"
    )
    warmup_lr_rate: float | None = Field(
        None, ge=0, lt=1, description="the rate at the start as a share of the peak"
    )
    lr_end: float | None = Field(
        None, ge=0, le=10, description="the rate at the end of polynomial; default: 1e-7"
    )
    power: float | None = Field(
        None, gt=0, le=100, description="the power of polynomial; default: 1"
    )
    timescale: int | None = Field(
        None, ge=1, le=100_000_000, description="steps over which inverse_sqrt falls"
    )
    num_decay_steps: int | None = Field(
        None, ge=1, le=100_000_000, description="the last steps, over which the rate falls"
    )
    warmup_type: Shape | None = Field(None, description="how the rate rises; default: linear")
    decay_type: Shape | None = Field(None, description="how the rate falls; default: cosine")
    min_lr_ratio: float | None = Field(
        None, ge=0, lt=1, description="the rate at the end as a share of the peak; default: 0"
    )
    factor: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="what the rate is multiplied by; default: 0.1; greedy: 0.95",
    )
    patience: int | None = Field(
        None,
        ge=0,
        le=100_000_000,
        description="evaluations without an improvement before that; default: 10",
    )
    threshold: float | None = Field(
        None,
        ge=0,
        le=1e9,
        description="the least improvement that counts; default: 1e-4; greedy: 1e-6",
    )
    threshold_mode: Literal["rel", "abs"] | None = Field(
        None,
        description="whether threshold is a share of the best value; default: rel; greedy: abs",
    )
    cooldown: int | None = Field(
        None, ge=0, le=100_000_000, description="evaluations to wait after a fall; default: 0"
    )
    warmup: int | None = Field(
        None,
        ge=0,
        le=100_000_000,
        description="of greedy: evaluations to wait after a rise; default: 0",
    )
    max_lr: float | None = Field(
        None, gt=0, le=10, description="of greedy: the rate above which none is raised; default: 1"
    )
    eps: float | None = Field(
        None, ge=0, le=1, description="of greedy: the least change that is made; default: 1e-8"
    )
    smooth: bool | None = Field(
        None, description="of greedy: compare the mean of the last window_size scores"
    )
    window_size: int | None = Field(
        None, ge=1, le=100_000, description="of smooth: scores in the mean; default: 50"
    )
    reset_start: int | None = Field(
        None,
        ge=0,
        le=100_000_000,
        description="of greedy: falls that are wanted at min_lr before the rate begins again at its"
        " start; default: 500",
    )

    def given(self) -> dict[str, float | str]:
        """Return those that are set."""
        return {name: value for name, value in self.model_dump().items() if value is not None}


class GradientCheckpointingKwargs(Settings):
    """Settings of gradient checkpointing, by transformers' names."""

    every_n_layers: int = Field(
        1,
        ge=1,
        le=10_000,
        description="recompute every n-th layer only: the others keep their activations, which"
        " takes memory and saves time",
    )


class TrainSettings(Settings):
    """How a stage trains: TrainingArguments' names, passed on explicitly and recorded."""

    num_train_epochs: float = Field(
        1.0,
        gt=0,
        le=10_000,
        description="passes over the training data (epochs), if max_steps is not set",
    )
    max_steps: int | None = Field(
        None, ge=1, le=100_000_000, description="stop after this many optimiser steps"
    )
    per_device_train_batch_size: int = Field(
        8, ge=1, le=65_536, description="rows in one forward pass on one device"
    )
    gradient_accumulation_steps: int | None = Field(
        None,
        ge=1,
        le=65_536,
        description="forward passes of each process before an optimiser step; default: 1, or what"
        " train_batch_size asks for",
    )
    train_batch_size: int | None = Field(
        None,
        ge=1,
        le=4_294_967_296,
        description="rows in one optimiser step over all processes; gradient_accumulation_steps"
        " then follows from the number of processes",
    )
    per_device_train_tokens: int | None = Field(
        None,
        ge=1,
        le=100_000_000,
        description="tokens in one forward pass on one device, at most: a step keeps its rows, and"
        " they share as few passes as have room for them, in place of per_device_train_batch_size"
        " rows each; a row that is longer is a pass of its own",
    )
    per_device_eval_batch_size: int = Field(
        32, ge=1, le=65_536, description="rows in one forward pass of evaluation or sampling"
    )
    learning_rate: float = Field(2e-4, gt=0, le=10, description="the peak learning rate")
    lr_scheduler_type: SerializeAsAny[ScheduleConfig] | Literal[
        "constant", "constant_with_warmup", "linear", "cosine", "polynomial", "inverse_sqrt",
        "cosine_with_restarts", "cosine_with_min_lr", "cosine_warmup_with_min_lr",
        "warmup_stable_decay", "reduce_lr_on_plateau", "greedy",
    ] = Field(
        "linear",
        description="the learning-rate schedule after the warm-up; or a block for any installed"
        " one: {method: ..., its settings}",
    )  # fmt: skip
    lr_scheduler_kwargs: LrSchedulerKwargs = Field(
        default_factory=LrSchedulerKwargs,
        description="settings of a schedule that is not written as a block",
    )
    warmup_steps: int = Field(
        0,
        ge=0,
        le=100_000_000,
        description="optimiser steps in which the learning rate rises to its peak",
    )
    warmup_ratio: float = Field(
        0.0, ge=0, lt=1, description="the warm-up as a share of all steps, instead of warmup_steps"
    )
    warmup_max_steps: int | None = Field(
        None, ge=1, le=100_000_000, description="the steps of a warm-up by warmup_ratio at most"
    )
    warmup_rounding: Literal["up", "axolotl"] = Field(
        "up",
        description="how warmup_ratio becomes whole steps: up, as transformers has it, or as"
        " Axolotl: down, and 1 becomes 2",
    )
    optim: SerializeAsAny[OptimizerConfig] | Literal[
        "adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit",
        "sgd", "adafactor", "adagrad", "rmsprop", "lion_32bit", "lion_8bit", "paged_lion_32bit",
        "paged_lion_8bit", "muon", "adamw_torch_8bit", "adamw_torch_4bit", "schedule_free_adamw",
        "schedule_free_sgd",
    ] = Field(
        "adamw_torch",
        description="the optimiser; muon trains matrices only; or a block for any installed one:"
        " {method: ..., its settings}",
    )  # fmt: skip
    weight_decay: float = Field(
        0.0,
        ge=0,
        le=10,
        description="decoupled weight decay; none on biases and norms, as transformers' Trainer",
    )
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="decay of the first moment")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="decay of the second moment")
    adam_epsilon: float = Field(
        1e-8, gt=0, le=1, description="added to the square root of the second moment"
    )
    neftune_noise_alpha: float | None = Field(
        None,
        gt=0,
        le=1e6,
        description="NEFTune: the size of the noise on embeddings in training, such as 5; default:"
        " none",
    )
    max_grad_norm: float = Field(
        1.0, ge=0, le=1e6, description="clip the gradient to this norm; 0: no clipping"
    )
    on_nan: Literal["fail", "skip"] = Field(
        "fail",
        description="what happens if a loss or a gradient is not finite: fail stops before the"
        " update, skip leaves the update out and counts it",
    )
    bf16: bool | Literal["auto"] = Field(
        False,
        description="compute in bfloat16 under autocast; auto: where the GPU has instructions for"
        " it, or the CPU AMX, and the weights are not float16, decided before the run and recorded"
        " with it",
    )
    tf32: bool | None = Field(
        None,
        description="on a GPU: round the factors of float32 products to TF32's 10 bits, which is"
        " faster; default: as torch has it, in convolutions only",
    )
    gradient_checkpointing: bool = Field(
        False, description="recompute the layers' activations in the backward pass"
    )
    gradient_checkpointing_kwargs: GradientCheckpointingKwargs = Field(
        default_factory=GradientCheckpointingKwargs,
        description="settings of gradient checkpointing, such as {every_n_layers: 2}",
    )
    train_sampling_strategy: SamplingStrategy = Field(
        "random",
        description="the order in which an epoch takes its rows: random; sequential, as the data"
        " has them; group_by_length: at random too, and the rows of a pass are of like length",
    )
    drop_last: bool = Field(
        False,
        description="leave out the last rows of an epoch, which fill no whole step, as TRL does of"
        " prompts to be answered; streamed rows follow one another",
    )
    activation_offloading: bool = Field(
        False,
        description="on a GPU: keep the layers' inputs, which gradient_checkpointing holds until"
        " the backward pass, in the CPU's memory: less of the GPU's, and a copy there and back",
    )
    shard_base: bool = Field(
        False,
        description="of several processes: each keeps a share of the weights of every layer, and"
        " gathers a layer when it is computed, as FSDP's full_shard and ZeRO-3 do; for a model that"
        " one device has no room for",
    )
    full_determinism: bool = Field(
        False,
        description="on a GPU: only kernels that give the same bits each time, which are slower; on"
        " a CPU they do anyway",
    )
    max_length: int | None = Field(
        None,
        ge=2,
        le=10_000_000,
        description="the most tokens in a row; default: the model's limit",
    )
    max_prompt_length: int | None = Field(
        None,
        ge=1,
        le=10_000_000,
        description="of pairs and of answers with a label: the most tokens of a prompt; a longer"
        " one loses its start, as in TRL's DPO before it knew max_length alone",
    )
    packing: bool = Field(
        False, description="fill each row of a batch with several examples up to max_length"
    )
    packing_strategy: Literal["bfd", "wrapped"] = Field(
        "bfd",
        description="how packing fills them, by TRL's names; bfd: with whole rows (best fit"
        " decreasing); wrapped: plain text, row after row, cut where max_length is reached",
    )
    cross_document_attention: bool = Field(
        False,
        description="of wrapped: the tokens of a row also see the texts before theirs, as in TRL;"
        " default: each text sees itself only",
    )
    on_long_row: Literal["truncate", "drop", "fail", "split"] = Field(
        "truncate",
        description="what happens to a row longer than max_length; split, of plain text only: it"
        " becomes several rows, and nothing of it is lost; default: truncate, and split where"
        " packing_strategy is wrapped",
    )
    max_dropped: Share = Field(
        0.05, description="stop if more than this share of the rows is dropped or loses its answer"
    )
    logging_steps: Interval = Field(
        10,
        description="optimiser steps between two logs of the metrics; below 1: a share of all"
        " steps",
    )
    save_strategy: Literal["no", "epoch", "steps"] = Field(
        "no", description="when checkpoints are saved; the final adapter always is"
    )
    save_steps: Interval = Field(
        500,
        description="optimiser steps between checkpoints, for 'steps'; below 1: a share of all"
        " steps",
    )
    save_total_limit: int = Field(
        2,
        ge=2,
        le=10_000,
        description="how many checkpoints are kept, at least 2: the newest, and among them the"
        " best where one is chosen",
    )

    def accumulation(self, processes: int = 1) -> int:
        """Return the forward passes of each process before an optimiser step."""
        if self.train_batch_size is None:
            return self.gradient_accumulation_steps or 1
        return max(1, self.train_batch_size // (self.per_device_train_batch_size * processes))

    def rows_per_step(self, processes: int = 1) -> int:
        """Return the rows of an optimiser step, over all processes."""
        return self.per_device_train_batch_size * self.accumulation(processes) * processes

    @property
    def under_autocast(self) -> bool:
        """Whether it computes in bfloat16. ValueError: `auto` was not decided yet."""
        if self.bf16 == "auto":
            raise ValueError("bf16 is 'auto'; decide it for the machine first")
        return self.bf16

    @property
    def packs_apart(self) -> bool:
        """Whether packed rows have to be kept apart, so that each sees only itself."""
        return self.packing and not self.cross_document_attention

    @property
    def _warms_up(self) -> bool:
        return bool(self.warmup_steps or self.warmup_ratio)

    @model_validator(mode="before")
    @classmethod
    def _wrapped_splits(cls, block: Any) -> Any:
        """Say that a long row is cut where `wrapped` cuts it, unless something else is said."""
        if isinstance(block, dict) and block.get("packing_strategy") == "wrapped":
            return {"on_long_row": "split", **block}
        return block

    @field_validator("optim", mode="before")
    @classmethod
    def _offered(cls, value: Any) -> Any:
        """Say why an optimiser that other tools have is not here."""
        for begin, reason in NOT_OFFERED.items():
            if isinstance(value, str) and value.startswith(begin):
                raise ValueError(f"'{value[:80]}' is not offered: {reason}")
        return value

    @model_validator(mode="after")
    def _no_contradiction(self) -> TrainSettings:
        if self.warmup_steps and self.warmup_ratio:
            raise ValueError("warmup_steps and warmup_ratio exclude each other; keep one")
        whole, size = self.train_batch_size, self.per_device_train_batch_size
        if whole and self.gradient_accumulation_steps:
            raise ValueError(
                "train_batch_size and gradient_accumulation_steps exclude each other; keep one"
            )
        if whole and whole % size:
            raise ValueError(
                f"train_batch_size: {whole} is not a multiple of per_device_train_batch_size:"
                f" {size}; write {-(-whole // size) * size}, or another per_device_train_batch_size"
            )
        most = self.max_steps
        if most is not None and (self.warmup_steps > most or (self._warms_up and most == 1)):
            warmup = self.warmup_steps or 1
            raise ValueError(
                f"the warm-up takes {warmup} of {most} step{'s' * (most > 1)}, so that the learning"
                f" rate {'stays 0' if most == 1 else 'never reaches its peak'}; lower warmup_steps"
                " or warmup_ratio, or raise max_steps"
            )
        if self.warmup_max_steps and not self.warmup_ratio:
            raise ValueError("warmup_max_steps is about warmup_ratio; write that, or drop it")
        if self.warmup_rounding != "up" and not self.warmup_ratio:
            raise ValueError("warmup_rounding is about warmup_ratio; write that, or drop it")
        if self.warmup_ratio and self.lr_scheduler_type == "constant":
            raise ValueError(
                "the 'constant' schedule ignores warmup_ratio;"
                " write lr_scheduler_type: constant_with_warmup, or drop warmup_ratio"
            )
        if self.warmup_steps and self.lr_scheduler_type == "constant":
            raise ValueError(
                "the 'constant' schedule ignores warmup_steps;"
                " write lr_scheduler_type: constant_with_warmup, or drop warmup_steps"
            )
        if {"save_steps", "save_strategy"} & self.model_fields_set == {"save_steps"}:
            raise ValueError(
                "save_steps has no effect with save_strategy 'no', the default; write"
                " save_strategy: steps, or drop it"
            )
        if self.activation_offloading and not self.gradient_checkpointing:
            raise ValueError(
                "activation_offloading is about the layers' inputs, which only"
                " gradient_checkpointing: true keeps alone; write that, or drop it"
            )
        end = self.lr_scheduler_kwargs.lr_end
        end = 1e-7 if end is None else end
        shown = f"{end:g}".replace("e-0", "e-")
        if self.lr_scheduler_type == "polynomial" and self.learning_rate <= end:
            raise ValueError(
                f"lr_scheduler_type 'polynomial' decays to {shown}, and learning_rate is not above;"
                " raise it, or write linear, which decays to 0"
            )
        self._refuse_misfit_of_schedule()
        if (
            self.gradient_checkpointing_kwargs.every_n_layers > 1
            and not self.gradient_checkpointing
        ):
            raise ValueError(
                "gradient_checkpointing_kwargs is about gradient_checkpointing; set that to true,"
                " or drop it"
            )
        if self.packing and self.max_length is None:
            raise ValueError("packing fills rows up to max_length; set max_length")
        self._refuse_misfit_of_packing()
        return self

    def _refuse_misfit_of_packing(self) -> None:
        """Raise ValueError where settings of packing have no effect, or contradict each other."""
        wrapped = self.packing_strategy == "wrapped"
        if self.packing and self.train_sampling_strategy == "group_by_length":
            raise ValueError(
                "packing fills rows up to max_length, so that they are of like length already; drop"
                " train_sampling_strategy: group_by_length, or packing"
            )
        if wrapped and not self.packing:
            raise ValueError("packing_strategy is about packed rows; write packing: true")
        if self.cross_document_attention and not wrapped:
            raise ValueError(
                "cross_document_attention is about rows that packing_strategy: wrapped fills; write"
                " that, or drop it"
            )
        if wrapped and self.on_long_row != "split":
            raise ValueError(
                f"packing_strategy 'wrapped' cuts a row where max_length is reached and keeps the"
                f" rest, so on_long_row: {self.on_long_row} has no effect; write split, or drop it"
            )

    def _refuse_misfit_of_schedule(self) -> None:
        """Raise ValueError where a schedule has no such settings, or lacks one."""
        name, given = self.lr_scheduler_type, self.lr_scheduler_kwargs.given()
        if isinstance(name, ScheduleConfig):
            if given:
                raise ValueError(
                    "lr_scheduler_kwargs has no effect where lr_scheduler_type is a block; write"
                    f" {next(iter(given))} into that block"
                )
            return
        takes = SCHEDULE_KWARGS.get(name, ())
        for key in given:
            if key not in takes:
                raise ValueError(
                    f"lr_scheduler_type '{name}' has no {key} in lr_scheduler_kwargs; drop it"
                    + (f", or set one of {', '.join(takes)}" if takes else "")
                )
        if name == "cosine_with_restarts" and given.get("num_cycles", 1) != int(
            self.lr_scheduler_kwargs.num_cycles or 1
        ):
            raise ValueError("lr_scheduler_kwargs: num_cycles of restarts is a whole number")
        if name.endswith("_with_min_lr") and ("min_lr" in given) == ("min_lr_rate" in given):
            raise ValueError(
                f"lr_scheduler_type '{name}' needs one of min_lr and min_lr_rate in"
                " lr_scheduler_kwargs; set it"
            )
        if name == "warmup_stable_decay" and "num_decay_steps" not in given:
            raise ValueError(
                "lr_scheduler_type 'warmup_stable_decay' needs num_decay_steps in"
                " lr_scheduler_kwargs; set it"
            )
        if (self.lr_scheduler_kwargs.min_lr or 0) >= self.learning_rate:
            raise ValueError("lr_scheduler_kwargs: min_lr is not below learning_rate; lower it")
        if name in ("reduce_lr_on_plateau", "greedy") and self._warms_up:
            key = "warmup_steps" if self.warmup_steps else "warmup_ratio"
            raise ValueError(f"the '{name}' schedule has no warm-up; drop {key}")
