"""Rows: what a data set gives, as text and as token ids. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NotRequired, SupportsIndex, TypedDict, overload

if TYPE_CHECKING:
    import torch


class Message(TypedDict):
    """One turn of a conversation, as chat templates take it; content is '' beside calls alone."""

    role: str
    content: str
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[dict[str, Any]]]
    tool_call_id: NotRequired[str]
    name: NotRequired[str]


class Conversation(tuple[Message, ...]):
    """Messages, with the tools they may call and the template arguments of their own.

    tools: JSON schemas, as OpenAI writes them. template_kwargs: names that the chat template reads,
    beside those of the recipe. A slice keeps both.
    """

    tools: Sequence[Any]
    template_kwargs: Mapping[str, Any]

    def __new__(
        cls,
        messages: Iterable[Message] = (),
        tools: Sequence[Any] = (),
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> Conversation:
        made = super().__new__(cls, messages)
        made.tools, made.template_kwargs = tools, template_kwargs or {}
        return made

    @overload
    def __getitem__(self, key: SupportsIndex, /) -> Message: ...
    @overload
    def __getitem__(self, key: slice, /) -> Conversation: ...
    def __getitem__(self, key: Any, /) -> Any:
        found = super().__getitem__(key)
        return self.of(found) if isinstance(key, slice) else found

    def of(self, messages: Iterable[Message]) -> Conversation:
        """Return other messages with the same tools and arguments."""
        return Conversation(messages, self.tools, self.template_kwargs)

    def plain(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        extra = {"tools": list(self.tools), "template_kwargs": dict(self.template_kwargs)}
        return {"messages": list(self), **{key: value for key, value in extra.items() if value}}

    def __repr__(self) -> str:
        return f"Conversation({self.plain()})"

    def __eq__(self, other: object) -> bool:
        own = other.plain() if isinstance(other, Conversation) else {"messages": list(self)}
        return tuple.__eq__(self, other) is True and self.plain() == own

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = tuple.__hash__

    def __reduce__(self) -> tuple[Any, ...]:
        return Conversation, (tuple(self), self.tools, self.template_kwargs)


Prompt = str | tuple[Message, ...]
"""Text, or messages; messages with tools are a Conversation."""

Learn = Literal["all", "last", "every_token"] | tuple[str, ...]
Turns = Literal["auto", "whole", "rows"]


@dataclass(frozen=True, slots=True)
class TextRow:
    """Plain text; every token of it is trained on.

    special_tokens: special tokens that the text spells are tokens (parse), or letters (text); None:
    a text that spells any is refused.
    """

    text: str
    origin: str = ""
    special_tokens: Literal["parse", "text"] | None = None


@dataclass(frozen=True, slots=True)
class CompletionRow:
    """A prompt, and the completion that is trained on; messages go through the chat template.

    answers: the strings that count as right, for exact_match and f1; empty where unknown.
    origin: where the row came from, `file:line`, for error messages.
    message: the completion as a message, where it holds more than text, such as tool calls.
    """

    prompt: Prompt
    completion: str
    answers: tuple[str, ...] = ()
    origin: str = ""
    message: Message | None = None


@dataclass(frozen=True, slots=True)
class ChatRow:
    """A whole conversation.

    learn: every assistant turn, the last one, every token of the rendering, or the turns of roles.
    turns: one row for all turns, or a row for each, with the turns before it as at serving; auto:
    one row where the chat template writes earlier turns as it wrote them when they were answered.
    skip: the assistant turns that are not trained on, by their place among the messages.
    """

    messages: tuple[Message, ...]
    origin: str = ""
    learn: Learn = "all"
    turns: Turns = "auto"
    skip: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class PreferenceRow:
    """A prompt with a preferred and a dispreferred completion.

    margin: by how much the chosen answer is better, where raters said so.
    answers: the strings that count as right, for exact_match and f1; where empty, the chosen one.
    """

    prompt: Prompt
    chosen: str
    rejected: str
    margin: float | None = None
    origin: str = ""
    answers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class UnpairedRow:
    """A prompt with one completion, and whether it is a good one (True) or a bad one.

    answers: the strings that count as right, for exact_match and f1; empty where unknown.
    """

    prompt: Prompt
    completion: str
    label: bool
    answers: tuple[str, ...] = ()
    origin: str = ""


Label = str | int | float | tuple[str | int, ...]
"""A class by its name or number; several classes; or a number to predict."""


@dataclass(frozen=True, slots=True)
class ClassificationRow:
    """A text or a conversation, and its class.

    prompt: what is classified. label: the class by its name or number, several classes, or a number
    to predict; None where it is not known. text_pair: a second text, as tokenizers take one.
    """

    prompt: Prompt
    label: Label | None
    text_pair: str | None = None
    origin: str = ""


@dataclass(frozen=True, slots=True)
class PromptRow:
    """A prompt to answer; `answers` are the right ones where they are known.

    columns: other columns of the row, for reward functions that ask for them by name.
    """

    prompt: Prompt
    answers: tuple[str, ...] = ()
    origin: str = ""
    columns: Mapping[str, Any] | None = None


IGNORED = -100
"""The label of a token that is not trained on, as in transformers and torch."""

Row = (
    TextRow | CompletionRow | ChatRow | PreferenceRow | UnpairedRow | ClassificationRow | PromptRow
)
RowKind = Literal[
    "text", "completion", "chat", "preference", "unpaired", "classification", "prompt"
]


@dataclass(frozen=True, slots=True)
class Encoded:
    """A row as token ids.

    input_ids: T ids. labels: T ids, -100 where a token is not trained on. labels[t] is the token
    that is predicted at position t - 1, as in transformers.
    """

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    origin: str = ""

    @property
    def n_labels(self) -> int:
        """The number of trained-on tokens (the first token of a row is never predicted)."""
        return sum(label != IGNORED for label in self.labels[1:])


@dataclass(frozen=True, slots=True)
class EncodedUnpaired(Encoded):
    """A prompt and its completion as token ids, and whether the completion is a good one."""

    label: bool = True


@dataclass(frozen=True, slots=True)
class EncodedClassification(Encoded):
    """What is classified as token ids, none of them trained on, and its class as the row has it."""

    label: Label | None = None


@dataclass(frozen=True, slots=True)
class EncodedPrompt(Encoded):
    """A prompt as token ids, none of them trained on, with its text and the right answers."""

    prompt: Prompt = ""
    answers: tuple[str, ...] = ()
    columns: Mapping[str, Any] | None = None


@dataclass(slots=True)
class Answer:
    """A sampled answer: its token ids, with the one that ends it, and their log-probabilities.

    logps: in nats, under the distribution it was sampled from. ended: whether it has an end, and
    did not reach the limit. nuclei: with a top_p below 1, the ids that each token was sampled
    from, tensors of int32; else empty.
    """

    ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    ended: bool = False
    nuclei: list[torch.Tensor] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class SampledAnswer:
    """An answer to a prompt as reward functions see it, with the right answers where known.

    row: the prompt and the sampled tokens, which alone are labels; an answer that has an end ends
    with the end-of-sequence token. columns: other columns of the prompt's row.
    """

    prompt: Prompt
    completion: str
    answers: tuple[str, ...]
    row: Encoded
    columns: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class ScoredAnswer:
    """An answer to a held-out row, as metrics see it.

    references: the right answers; () where the row has none. row: as the data set gave it, with
    its origin.
    """

    prompt: Prompt
    answer: str
    references: tuple[str, ...]
    row: Row


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """A preference as token ids: two whole rows that begin with the same prompt.

    shared: so many first tokens are the same in both, and fewer than either has.
    """

    chosen: Encoded
    rejected: Encoded
    shared: int
    margin: float | None = None
    origin: str = ""
