"""The settings of `model`: the base, its tokenizer and chat template, and how it is stored."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from llmft.api.settings import Line, Name, Settings

_LARGEST_TEMPLATE = 1_000_000
Template = Annotated[str, Field(min_length=1, max_length=_LARGEST_TEMPLATE)]
NewTokens = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=200)]], Field(max_length=10_000)
]

ATTENTION_NOT_OFFERED = {
    "flex_attention": "torch computes no gradients with it on a CPU, where a model's padding-free"
    " passes are held to plain transformers before a run; write auto, whose kernel needs no mask"
    " either",
    "flash_attention_4": "nothing here has been held to it; write auto",
    "/": "it is code from the hub, and none of it runs here; write auto, or flash_attention_2 or"
    " flash_attention_3 with the package installed",
}
"""Names of attention in transformers that are not here, or what they hold, and why."""


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

    def options(self) -> dict[str, Any]:
        """Return it in BitsAndBytesConfig's names; empty where nothing is quantised."""
        if self.bits == 8:
            return {"load_in_8bit": True}
        return self.model_dump(exclude={"load_in_8bit"}) if self.bits == 4 else {}


class RopeScaling(Settings):
    """How rotary positions are stretched for longer rows: transformers' names.

    linear: Chen et al. 2023, arXiv:2306.15595; yarn: Peng et al. 2023, arXiv:2309.00071; llama3: as
    Llama 3.1's own. (`dynamic` is not here: its positions follow the longest row of a batch, so a
    row would not be trained on as it is alone.)
    """

    rope_type: Literal["linear", "yarn", "llama3"] = Field(description="how they are stretched")
    factor: float = Field(
        gt=1, le=1000, description="rows may be so many times as long as the base's own"
    )
    original_max_position_embeddings: int | None = Field(
        None,
        ge=1,
        le=100_000_000,
        description="the longest row that the base was trained on; default: its"
        " max_position_embeddings",
    )
    attention_factor: float | None = Field(
        None, gt=0, le=100, description="of yarn: what attention is scaled by; default: by factor"
    )
    beta_fast: float | None = Field(
        None, gt=0, le=10_000, description="of yarn: turns above which nothing changes; default: 32"
    )
    beta_slow: float | None = Field(
        None, gt=0, le=10_000, description="of yarn: turns below which all is stretched; default: 1"
    )
    low_freq_factor: float | None = Field(
        None, gt=0, le=10_000, description="of llama3: as Llama 3.1's config has it, there 1"
    )
    high_freq_factor: float | None = Field(
        None, gt=0, le=10_000, description="of llama3: as Llama 3.1's config has it, there 4"
    )

    @model_validator(mode="after")
    def _of_its_type(self) -> RopeScaling:
        own = {
            "yarn": ("attention_factor", "beta_fast", "beta_slow"),
            "llama3": ("low_freq_factor", "high_freq_factor"),
        }
        for kind, names in own.items():
            for name in names:
                if kind != self.rope_type and getattr(self, name) is not None:
                    raise ValueError(f"{name} has an effect only with rope_type: {kind}; drop it")
        if self.rope_type == "llama3":
            if self.low_freq_factor is None or self.high_freq_factor is None:
                raise ValueError("rope_type: llama3 needs low_freq_factor and high_freq_factor")
            if self.low_freq_factor >= self.high_freq_factor:
                raise ValueError("low_freq_factor is not below high_freq_factor; lower it")
        return self


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
    attn_implementation: Literal[
        "auto", "eager", "sdpa", "flash_attention_2", "flash_attention_3"
    ] = Field(
        "auto",
        description="the attention implementation; auto: padding-free where possible, by torch's"
        " kernels; flash_attention_2 and flash_attention_3: the same by the package flash-attn or"
        " flash-attn-3, on a GPU; eager and sdpa: padded",
    )
    fused: Literal["none", "liger", "compile"] = Field(
        "none",
        description="kernels that take several steps of a layer at once. liger: those of the"
        " package liger-kernel for norms, rotations and feed-forward blocks, on a GPU; compile:"
        " torch.compile's for norms",
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
    append_eos: bool | Literal["once", "always"] = Field(
        False,
        description="put end-of-text after what the chat template writes. true: after an answer"
        " that it ends with no token at which generation stops; once: at the end of every row,"
        " unless end-of-text is the last token there; always: even then",
    )
    tokenize_apart: bool = Field(
        False,
        description="tokenise each answer as a text of its own, after the prompt's tokens: some"
        " tokenizers begin it with a space then",
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
    rope_scaling: RopeScaling | None = Field(
        None, description="stretch rotary positions, for rows longer than the base's own"
    )
    quantization: Quantization = Field(
        default_factory=Quantization, description="how the frozen base model is stored"
    )

    @field_validator("attn_implementation", mode="before")
    @classmethod
    def _offered(cls, value: Any) -> Any:
        """Say why attention that other tools have is not here."""
        for begin, reason in ATTENTION_NOT_OFFERED.items():
            if isinstance(value, str) and (value == begin or (begin in value and "/" in begin)):
                raise ValueError(f"'{value[:80]}' is not offered: {reason}")
        return value

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


class OtherModel(Settings):
    """A second model that a method reads beside the one that it trains, such as a teacher.

    It is loaded by itself and frozen. It reads the trained model's token ids, so each token of that
    one's tokenizer must have the same id in its own.
    """

    path: Line = Field(
        description="a local folder, a hub id such as Qwen/Qwen2.5-7B-Instruct, or 'embedded:model'"
    )
    revision: Line | None = Field(None, description="the hub commit, tag or branch to load")
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = Field(
        "auto", description="the data type of its weights in memory; auto: that of its own files"
    )
    quantization: Quantization = Field(
        default_factory=Quantization, description="how its weights are stored"
    )

    def source(self) -> ModelSource:
        """Return it as the source of a base."""
        return ModelSource(
            path=self.path,
            revision=self.revision,
            dtype=self.dtype,
            quantization=self.quantization,
        )


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
