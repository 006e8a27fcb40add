"""Rows: what a data set gives, as text and as token ids. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypedDict

if TYPE_CHECKING:
    import torch


class Message(TypedDict):
    """One turn of a conversation, as chat templates take it."""

    role: str
    content: str


Prompt = str | tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class TextRow:
    """Plain text; every token of it is trained on."""

    text: str
    origin: str = ""


@dataclass(frozen=True, slots=True)
class CompletionRow:
    """A prompt, and the completion that is trained on; messages go through the chat template.

    answers: the strings that count as right, for exact_match and f1; empty where unknown.
    origin: where the row came from, `file:line`, for error messages.
    """

    prompt: Prompt
    completion: str
    answers: tuple[str, ...] = ()
    origin: str = ""


@dataclass(frozen=True, slots=True)
class ChatRow:
    """A whole conversation; every assistant turn of it is trained on."""

    messages: tuple[Message, ...]
    origin: str = ""


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
class PromptRow:
    """A prompt to answer; `answers` are the right ones where they are known."""

    prompt: Prompt
    answers: tuple[str, ...] = ()
    origin: str = ""


IGNORED = -100
"""The label of a token that is not trained on, as in transformers and torch."""

Row = TextRow | CompletionRow | ChatRow | PreferenceRow | PromptRow
RowKind = Literal["text", "completion", "chat", "preference", "prompt"]


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
class EncodedPrompt(Encoded):
    """A prompt as token ids, none of them trained on, with its text and the right answers."""

    prompt: Prompt = ""
    answers: tuple[str, ...] = ()


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
    with the end-of-sequence token.
    """

    prompt: Prompt
    completion: str
    answers: tuple[str, ...]
    row: Encoded


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
