"""What clients ask, in OpenAI's form: checked, with nothing left out in silence.

What would change the answer and cannot be done is refused; what changes nothing (`user`) is taken.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from llmft.api import Message, SamplingParams
from llmft.endpoint.answering import Question
from llmft.endpoint.served import Served

MOST_PROMPTS = 128
_MOST_KEYS = 64
_MOST_LOGPS = 2**20  # of prompts that are repeated, in one request: 100 MB of tuples
R = TypeVar("R", bound=BaseModel)
_Zero = Annotated[float, Field(ge=0, le=0)]
_One = Annotated[float, Field(ge=1, le=1)]
_Empty = Annotated[list[Any] | dict[str, Any], Field(max_length=0)]
_Stop = Annotated[str, Field(min_length=1, max_length=256)]
# A list ends at its first mistake: a body of 1 MiB has room for 340,000, each 1 KB once it is told.
_Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, fail_fast=True)]
_Prompts = (
    Annotated[list[str], Field(min_length=1, fail_fast=True)]
    | Annotated[list[_Ids], Field(min_length=1, fail_fast=True)]
)


class BadRequest(Exception):
    """What a client asks cannot be. param: which argument is meant; code: OpenAI's word."""

    def __init__(self, why: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(why)
        self.param, self.code = param, code


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _few_keys(cls, body: Any) -> Any:
        if isinstance(body, dict) and len(body) > _MOST_KEYS:
            raise PydanticCustomError("too_many_keys", "this has too many keys")
        return body


class _StreamOptions(_Asked):
    include_usage: bool = False
    include_obfuscation: bool = False


class _TextFormat(_Asked):
    type: Literal["text"]


class _Common(_Asked):
    model: str = Field(max_length=1000)
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    stop: _Stop | Annotated[list[_Stop], Field(max_length=16, fail_fast=True)] | None = None
    stream: bool | None = False
    stream_options: _StreamOptions | None = None
    return_token_ids: bool | None = False
    n: Annotated[int, Field(ge=1, le=MOST_PROMPTS)] | None = 1
    # Taken where they ask for nothing.
    presence_penalty: _Zero | None = None
    frequency_penalty: _Zero | None = None
    repetition_penalty: _One | None = None
    logit_bias: _Empty | None = None
    # These change no answer.
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None

    _where: ClassVar[str]

    @property
    def usage_in_stream(self) -> bool:
        """Whether a stream ends with a count of the tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    def _several(self, questions: Sequence[Question]) -> list[Question]:
        """Return each question `n` times, each with random numbers of its own."""
        count = self.n or 1
        if count > 1 and (self.stream or len(questions) * count > MOST_PROMPTS):
            why = f"n: {MOST_PROMPTS} answers at most in one request, and one where it is streamed"
            raise BadRequest(why, "n")
        return [
            replace(asked, seed=(asked.seed[0], number * count + choice), choice=choice)
            for number, asked in enumerate(questions)
            for choice in range(count)
        ]

    def _params(self, served: Served, prompt: int, wanted: int | None) -> SamplingParams:
        room = served.positions - prompt
        if room < 1 and wanted != 0:
            why = f"the prompt has {prompt} tokens, and the model {served.positions} positions"
            raise BadRequest(why, self._where, "context_length_exceeded")
        if wanted is not None and wanted > room:
            why = (
                f"{prompt} tokens of the prompt and {wanted} of the answer are more than the"
                f" model's {served.positions} positions"
            )
            raise BadRequest(why, "max_tokens", "context_length_exceeded")
        return SamplingParams(
            room if wanted is None else wanted,
            1.0 if self.temperature is None else self.temperature,
            self.top_p or 1.0,
            max(self.top_k or 0, 0),
        )

    def _question(
        self, served: Served, ids: list[int], wanted: int | None, **more: Any
    ) -> Question:
        if not ids:
            raise BadRequest("the prompt is empty", self._where)
        seed = secrets.randbits(62) if self.seed is None else self.seed % 2**63
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        params = self._params(served, len(ids), wanted)
        return Question(served, ids, params, (seed, 0), stop, **more)


class _Part(_Asked):
    type: Literal["text"]
    text: str


class _Turn(_Asked):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[_Part], Field(fail_fast=True)]
    name: str | None = None

    @property
    def message(self) -> Message:
        """The turn as data sets have it."""
        parts = self.content
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        message = Message(role=self.role, content=text)
        if self.name is not None:
            message["name"] = self.name
        return message


class ChatRequest(_Common):
    """The body of /v1/chat/completions."""

    _where = "messages"

    messages: Annotated[list[_Turn], Field(min_length=1, max_length=10_000, fail_fast=True)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: _TextFormat | None = None
    tools: _Empty | None = None
    functions: _Empty | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None

    def questions(self, served: Served) -> list[Question]:
        """Return the one question that is asked, `n` times.

        Raises BadRequest, or DataError of the run.
        """
        if self.top_logprobs is not None and not self.logprobs:
            raise BadRequest("top_logprobs needs logprobs: true", "top_logprobs")
        top = (self.top_logprobs or 0) if self.logprobs else None
        wanted = self.max_completion_tokens or self.max_tokens or None
        ids = served.chat_ids([turn.message for turn in self.messages])
        return self._several([self._question(served, ids, wanted, top=top)])


class CompletionRequest(_Common):
    """The body of /v1/completions. prompt: a text or token ids, or several of either."""

    _where = "prompt"

    prompt: str | _Ids | _Prompts
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = False
    suffix: Annotated[str, Field(max_length=0)] | None = None
    best_of: Annotated[int, Field(ge=1, le=1)] | None = None

    def questions(self, served: Served) -> list[Question]:
        """Return a question for each prompt, `n` times.

        Raises BadRequest where one cannot be asked.
        """
        given: Any = self.prompt
        several = isinstance(given, list) and not isinstance(given[0], int)
        prompts: Sequence[str | list[int]] = given if several else [given]
        if len(prompts) > MOST_PROMPTS or (self.stream and len(prompts) > 1):
            why = f"{MOST_PROMPTS} prompts at most, and one where the answer is streamed"
            raise BadRequest(why, "prompt")
        wanted = 16 if self.max_tokens is None else self.max_tokens
        if not wanted and not self.echo:
            raise BadRequest("max_tokens is 0, which only echo: true gives a meaning", "max_tokens")
        rows = [self._ids(served, prompt) for prompt in prompts]
        told = sum(map(len, rows)) * ((self.logprobs or 0) + 1) * (self.n or 1)
        if self.echo and self.logprobs is not None and told > _MOST_LOGPS:
            why = f"{told:,} log-probabilities of prompts are asked for, {_MOST_LOGPS:,} at most"
            raise BadRequest(why, "logprobs")
        return self._several(
            [
                self._question(served, ids, wanted, top=self.logprobs, echo=bool(self.echo))
                for ids in rows
            ]
        )

    @staticmethod
    def _ids(served: Served, prompt: str | list[int]) -> list[int]:
        if isinstance(prompt, str):
            return served.text_ids(prompt)
        if max(prompt) >= served.vocabulary:
            why = f"{max(prompt)} is no token: the model has {served.vocabulary}"
            raise BadRequest(why, "prompt")
        return prompt


def read(kind: type[R], body: Any) -> R:
    """Return a body as a request; raise BadRequest where it is none."""
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = [str(part) for part in first["loc"]]
        param = where[0][:64] if where else None
        if first["type"] == "extra_forbidden":
            raise BadRequest(f"unrecognized argument: {'.'.join(where)[:64]}", param) from None
        message = first["msg"][:1].lower() + first["msg"][1:]
        raise BadRequest(f"{param or 'the body'}: {message}", param) from None
