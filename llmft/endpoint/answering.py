"""One thread that answers, question after question; connections wait for what it says.

Tokens go through a queue, so that a client that reads slowly holds up nobody else's answer.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from llmft.api import SamplingParams
from llmft.api.errors import DataError
from llmft.endpoint.served import Served
from llmft.inference.growing_text import GrowingText

MOST_WAITING = 32
_TICK = 0.5  # seconds between two looks whether a client is still there
_MOST_NUMBERS = 2**29  # of the logits of a prompt: 2 GB of float32
_ROWS = 256


@dataclass(frozen=True)
class Question:
    """What is to be answered: ids, and how.

    params: with max_new_tokens 0, nothing is said. stop: texts that end the answer. top: how many
    of the likeliest tokens are noted beside each; None: no log-probabilities. echo: note those of
    the prompt's tokens too. choice: which of several answers to one prompt it is.
    """

    served: Served
    ids: list[int]
    params: SamplingParams
    seed: tuple[int, ...]
    stop: tuple[str, ...] = ()
    top: int | None = None
    echo: bool = False
    choice: int = 0


@dataclass(frozen=True, slots=True)
class Token:
    """A token and its log-probability, in nats: the model's own, before temperature and top_p.

    logp: None for the first of a prompt, and where none was asked for. top: the likeliest tokens.
    """

    id: int
    logp: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """What was said since the last one. text may be empty."""

    text: str
    tokens: tuple[Token, ...]


@dataclass
class Answer:
    """What was said in all. prompt: its tokens, where they were asked for."""

    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    prompt: list[Token] = field(default_factory=list)
    finish: Literal["stop", "length"] = "length"


class Busy(Exception):
    """So many wait already that no more is taken."""


class Gone(Exception):
    """The client has hung up."""


class Reply:
    """An answer on its way."""

    def __init__(self, question: Question) -> None:
        self.question = question
        self.cancelled = threading.Event()
        self._parts: queue.SimpleQueue[Piece | Answer | BaseException] = queue.SimpleQueue()

    def put(self, part: Piece | Answer | BaseException) -> None:
        """Hand on a part; the last one is an Answer, or an error."""
        self._parts.put(part)

    def parts(self, alive: Callable[[], bool]) -> Iterator[Piece | Answer]:
        """Yield the pieces, and the whole Answer last.

        alive: whether the client is still there; asked before each. Raises Gone where it is not,
        and whatever the model raised.
        """
        try:
            while True:
                if not alive():
                    raise Gone
                try:
                    part = self._parts.get(timeout=_TICK)
                except queue.Empty:
                    continue
                if isinstance(part, BaseException):
                    raise part
                yield part
                if isinstance(part, Answer):
                    return
        finally:
            self.cancelled.set()

    def whole(self, alive: Callable[[], bool]) -> Answer:
        """Return the answer when it is there. Raises as `parts` does."""
        (answer,) = (part for part in self.parts(alive) if isinstance(part, Answer))
        return answer


class Answerer(threading.Thread):
    """Answers one question after another, in the order in which they came."""

    def __init__(self) -> None:
        super().__init__(daemon=True, name="answerer")
        self._waiting: queue.Queue[Reply] = queue.Queue(MOST_WAITING)

    def ask(self, question: Question) -> Reply:
        """Return the reply to a question. Raises Busy where too many wait."""
        reply = Reply(question)
        try:
            self._waiting.put_nowait(reply)
        except queue.Full:
            raise Busy from None
        return reply

    def run(self) -> None:
        """Answer for ever."""
        while True:
            reply = self._waiting.get()
            try:
                if not reply.cancelled.is_set():
                    reply.put(answered(reply.question, reply.put, reply.cancelled.is_set))
            except BaseException as error:  # whoever asked hears it; the next one is answered
                reply.put(error)


def answered(
    question: Question,
    on_piece: Callable[[Piece], None] = lambda _: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Answer:
    """Return the answer to a question; on_piece hears each piece as it comes."""
    from llmft.modeling.decoding import Stopped, decode, stop_ids

    served, params, top = question.served, question.params, question.top
    model, answer = served.model, Answer()
    if question.echo:
        answer.prompt = _prompt_tokens(question)
    if not params.max_new_tokens:
        return answer
    stops = stop_ids(model, served.tokenizer)
    text = GrowingText(served.tokenizer, question.stop)
    raw: list[Any] = [None]

    def look(logits_BV: Any) -> None:
        raw[0] = logits_BV[0].float().log_softmax(-1)

    def take(_: int, token: int) -> None:
        noted = Token(token) if top is None else _noted(raw[0], token, top)
        answer.tokens.append(noted)
        on_piece(Piece(text.add(token), (noted,)))

    with suppress(Stopped):
        decode(
            model, [question.ids], replace(params, stop_token_ids=stops), batch_size=1,
            seed=question.seed, stopping=lambda: text.stopped or cancelled(), on_token=take,
            on_logits=look if top is not None else lambda _: None,
        )  # fmt: skip
    on_piece(Piece(text.end(), ()))
    answer.text = text.text
    if text.stopped or (answer.tokens and answer.tokens[-1].id in stops):
        answer.finish = "stop"
    return answer


def _noted(logps_V: Any, token: int, top: int) -> Token:
    likeliest: tuple[tuple[int, float], ...] = ()
    if top:
        best = logps_V.topk(min(top, len(logps_V)))
        likeliest = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return Token(token, float(logps_V[token]), likeliest)


def _prompt_tokens(question: Question) -> list[Token]:
    """Return a prompt's tokens, each but the first with its log-probability after those before."""
    import torch

    from llmft.modeling.decoding import dense_attention

    ids, top, model = question.ids, question.top, question.served.model
    if top is None:
        return [Token(i) for i in ids]
    if len(ids) * question.served.vocabulary > _MOST_NUMBERS:
        what = f"the log-probabilities of a prompt of {len(ids)} tokens take too much memory"
        raise DataError("E106", what, fix="send a shorter prompt, or no echo")
    tokens = [Token(ids[0])]
    with dense_attention(model), torch.no_grad():
        device = next(model.parameters()).device
        logits_TV = model(input_ids=torch.tensor([ids], device=device)).logits[0]
        for start in range(0, len(ids) - 1, _ROWS):
            rows = logits_TV[start : min(start + _ROWS, len(ids) - 1)].float().log_softmax(-1)
            tokens += [_noted(row, ids[start + n + 1], top) for n, row in enumerate(rows.cpu())]
    return tokens
