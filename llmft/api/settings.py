"""The settings every recipe has, whatever methods it picks: model, training and evaluation.

Settings have the names that users know: `model.quantization` has BitsAndBytesConfig's, `train`
TrainingArguments'. Every field has a type, a bound and a description; unknown keys are refused.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    field_validator,
    model_validator,
)

from llmft.api.splits import checked_split

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
Line = Annotated[str, Field(min_length=1, max_length=4096)]
_LARGEST_TEMPLATE = 1_000_000
Template = Annotated[str, Field(min_length=1, max_length=_LARGEST_TEMPLATE)]
Split = Annotated[Line, AfterValidator(checked_split)]
"""A split, or parts of splits as `datasets` writes them."""
NewTokens = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=200)]], Field(max_length=10_000)
]
Share = Annotated[float, Field(ge=0, le=1)]
Interval = Annotated[int, Field(ge=1, le=100_000_000)] | Annotated[float, Field(gt=0, lt=1)]
"""A number, such as of optimiser steps or rows; or, below 1, a share of all."""


class Settings(BaseModel):
    """A frozen block of settings that refuses unknown keys, NaN, and values of another type."""

    # Validators are built when first used: most commands need few of them.
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, defer_build=True
    )


class Quantization(Settings):
    """How the frozen base model is stored: BitsAndBytesConfig's names."""

    load_in_4bit: bool = Field(False, description="store the base's linear weights in 4 bits")
    load_in_8bit: bool = Field(False, description="store the base's linear weights in 8 bits")
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = Field("nf4", description="the 4-bit data type")
    bnb_4bit_use_double_quant: bool = Field(
        False, description="quantise the quantisation constants too"
    )
    bnb_4bit_compute_dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "bfloat16", description="the data type of the computation with 4-bit weights"
    )

    @model_validator(mode="after")
    def _one_width(self) -> Quantization:
        if self.load_in_4bit and self.load_in_8bit:
            raise ValueError("load_in_4bit and load_in_8bit exclude each other; keep one")
        if not self.load_in_4bit:
            for name, field in Quantization.model_fields.items():
                if name.startswith("bnb_4bit_") and getattr(self, name) != field.default:
                    raise ValueError(
                        f"{name} has an effect only with 4-bit weights;"
                        " remove it, or write load_in_4bit: true"
                    )
        return self

    @property
    def bits(self) -> int | None:
        """The width of a stored base weight, or None where nothing is quantised."""
        return 4 if self.load_in_4bit else 8 if self.load_in_8bit else None


class ModelSource(Settings):
    """Which base model, and how it is loaded."""

    path: Line = Field(
        description="a local folder, a hub id such as meta-llama/Llama-3.1-8B-Instruct,"
        " or 'embedded:model', the small model that ships with llmft"
    )
    revision: Line | None = Field(None, description="the hub commit, tag or branch to load")
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = Field(
        "float32",
        description="the data type of the base's weights in memory; auto: that of its own files",
    )
    attn_implementation: Literal["auto", "eager", "sdpa", "flash_attention_2"] = Field(
        "auto", description="the attention implementation; auto: padding-free where possible"
    )
    chat_template: Template | None = Field(
        None,
        description="a Jinja chat template, a file that holds one, or a model whose template it"
        " is; default: the tokenizer's own",
    )
    chat_template_kwargs: dict[Name, bool | int | float | str] = Field(
        default_factory=dict,
        max_length=50,
        description="names that the chat template reads, such as {enable_thinking: false}",
    )
    chat_template_date: str = Field(
        "2024-07-26",
        pattern=r"^\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])$",
        description="the day that a chat template is told, where it writes the day",
    )
    lost_text: Literal["refuse", "note"] = Field(
        "refuse",
        description="what is done with a row of which the chat template leaves out some text:"
        " refuse it, or train without that text and say so",
    )
    append_eos: bool = Field(
        False,
        description="put end-of-text after an answer that the chat template ends with no token at"
        " which generation stops",
    )
    missing_stop: Literal["note", "refuse"] = Field(
        "note",
        description="what is done with an answer that the chat template ends with no token at which"
        " generation stops: train on it and say so, or refuse it",
    )
    learn_template: Literal["stop", "turn", "none", "eos"] = Field(
        "stop",
        description="how much of what the chat template writes around an answer is trained on."
        " stop: all from the prompt's end to the token at which generation stops; turn: what"
        " follows that in the turn too, such as a line break; none: only the answer's own text;"
        " eos: that text, and the token right after it where it is the tokenizer's end-of-text or"
        " one of model.stop",
    )
    stop: list[Line] = Field(
        default_factory=list,
        max_length=20,
        description="tokens that end an answer, beside those that the model's files name",
    )
    tokenizer: Line | None = Field(
        None, description="a folder or hub id of a tokenizer; default: the model's own"
    )
    add_tokens: NewTokens = Field(
        default_factory=list,
        description="tokens that are added to the tokenizer, each one token wherever its text"
        " stands; its row of the embedding starts as the mean of its pieces' rows, and is trained"
        " and saved with the adapter",
    )
    add_special_tokens: NewTokens = Field(
        default_factory=list,
        description="as add_tokens, for marks that only a chat template writes, such as"
        " <|im_start|>; inside a message they stay text",
    )
    quantization: Quantization = Field(
        default_factory=Quantization, description="how the frozen base model is stored"
    )

    @model_validator(mode="after")
    def _an_end_that_is_learnt(self) -> ModelSource:
        if self.append_eos and self.learn_template in ("none", "eos"):
            raise ValueError(
                "append_eos puts a token after an answer, and learn_template:"
                f" {self.learn_template} trains on none but what the chat template writes there;"
                " drop one of the two"
            )
        return self

    @field_validator("chat_template")
    @classmethod
    def _read_template(cls, text: str | None) -> str | None:
        return text if text is None else read_template(text)

    @field_validator("add_tokens", "add_special_tokens")
    @classmethod
    def _no_blanks(cls, tokens: list[str]) -> list[str]:
        for token in tokens:
            if not token.strip():
                raise ValueError(f"{token!r} is blank, and would cut every text at its spaces")
        return tokens

    @model_validator(mode="after")
    def _each_token_once(self) -> ModelSource:
        seen: set[str] = set()
        for token in (*self.add_tokens, *self.add_special_tokens):
            if token in seen:
                raise ValueError(f"the new token '{token}' is there twice; leave one out")
            seen.add(token)
        return self

    @field_validator("chat_template_date")
    @classmethod
    def _a_day(cls, text: str) -> str:
        datetime.date.fromisoformat(text)
        return text


def is_template(text: str) -> bool:
    """Return whether a text is a Jinja template, and no name of a file or of a model."""
    return "{{" in text or "{%" in text


def read_template(text: str) -> str:
    """Return a chat template that is given as such, or as the name of a file that holds it.

    The name of a model, a folder or a hub id, is returned as it is. Raises ValueError where there
    is no such file, or no template in it.
    """
    if is_template(text):
        return text
    path = Path(text).expanduser()
    if "\0" not in text and path.is_file():
        try:
            with path.open("rb") as file:
                held = file.read(_LARGEST_TEMPLATE + 1).decode("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"'{text}' cannot be read as a text: {error}") from error
        if not is_template(held) or len(held) > _LARGEST_TEMPLATE:
            raise ValueError(f"'{text}' holds no Jinja template")
        return held
    if path.suffix in (".jinja", ".jinja2", ".j2", ".txt") or "\n" in text or " " in text:
        raise ValueError(f"'{text[:80]}' is no Jinja template, and there is no such file")
    return text


class PushToHub(Settings):
    """Where a finished stage's adapter is uploaded after the run, with the user's own login."""

    repo_id: str = Field(
        pattern=r"^[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?$",
        description="the hub repository, such as my-name/my-adapter; created if it does not exist",
    )
    private: bool = Field(
        True, description="keep the repository private; an existing public one is refused"
    )
    stage: Name = Field(
        "last",
        description="the stage whose adapter is uploaded, of the last round if it is repeated;"
        " 'last': the last stage that trains",
    )
    timeout_seconds: float = Field(
        600.0,
        gt=0,
        le=86_400,
        description="stop the upload after this time; the run itself is finished",
    )


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
}  # fmt: skip
"""The settings of each learning-rate schedule that has some, by transformers' names."""

Shape = Literal["linear", "cosine", "1-sqrt"]


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
        None, gt=0, lt=1, description="what the rate is multiplied by; default: 0.1"
    )
    patience: int | None = Field(
        None,
        ge=0,
        le=100_000_000,
        description="evaluations without an improvement before that; default: 10",
    )
    threshold: float | None = Field(
        None, ge=0, le=1e9, description="the least improvement that counts; default: 1e-4"
    )
    threshold_mode: Literal["rel", "abs"] | None = Field(
        None, description="whether threshold is a share of the best value; default: rel"
    )
    cooldown: int | None = Field(
        None, ge=0, le=100_000_000, description="evaluations to wait after a fall; default: 0"
    )

    def given(self) -> dict[str, float | str]:
        """Return those that are set."""
        return {name: value for name, value in self.model_dump().items() if value is not None}


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
    per_device_eval_batch_size: int = Field(
        32, ge=1, le=65_536, description="rows in one forward pass of evaluation or sampling"
    )
    learning_rate: float = Field(2e-4, gt=0, le=10, description="the peak learning rate")
    lr_scheduler_type: SerializeAsAny[ScheduleConfig] | Literal[
        "constant", "constant_with_warmup", "linear", "cosine", "polynomial", "inverse_sqrt",
        "cosine_with_restarts", "cosine_with_min_lr", "cosine_warmup_with_min_lr",
        "warmup_stable_decay", "reduce_lr_on_plateau",
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
        "paged_lion_8bit", "muon",
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
    bf16: bool = Field(False, description="compute in bfloat16 under autocast")
    gradient_checkpointing: bool = Field(
        False, description="recompute the layers' activations in the backward pass"
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
        end = self.lr_scheduler_kwargs.lr_end
        end = 1e-7 if end is None else end
        shown = f"{end:g}".replace("e-0", "e-")
        if self.lr_scheduler_type == "polynomial" and self.learning_rate <= end:
            raise ValueError(
                f"lr_scheduler_type 'polynomial' decays to {shown}, and learning_rate is not above;"
                " raise it, or write linear, which decays to 0"
            )
        self._refuse_misfit_of_schedule()
        if self.packing and self.max_length is None:
            raise ValueError("packing fills rows up to max_length; set max_length")
        self._refuse_misfit_of_packing()
        return self

    def _refuse_misfit_of_packing(self) -> None:
        """Raise ValueError where settings of packing have no effect, or contradict each other."""
        wrapped = self.packing_strategy == "wrapped"
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
        if name == "reduce_lr_on_plateau" and self._warms_up:
            key = "warmup_steps" if self.warmup_steps else "warmup_ratio"
            raise ValueError(f"the 'reduce_lr_on_plateau' schedule has no warm-up; drop {key}")


class MetricConfig(Settings):
    """Base of every metric's settings."""

    method: Line = Field(description="which metric method")
    name: Name | None = Field(
        None, description="what its score is called; default: as the method is"
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
        " and score on them; a number is taken from all sources of a mixture together",
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
