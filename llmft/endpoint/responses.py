"""What clients are told, in OpenAI's form."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Sequence
from typing import Any

from llmft.endpoint.answering import Answer, Piece, Question, Token

Data = dict[str, Any]


def models(names: Sequence[str], created: int) -> Data:
    """Return the list of models."""
    return {"object": "list", "data": [model(name, created) for name in names]}


def model(name: str, created: int) -> Data:
    """Return the description of one model."""
    return {"id": name, "object": "model", "created": created, "owned_by": "llmft"}


def error(why: str, kind: str, param: str | None = None, code: str | None = None) -> Data:
    """Return an error."""
    return {"error": {"message": why, "type": kind, "param": param, "code": code}}


class Response:
    """The answer to one request, whole or in chunks. ids: whether token ids are told (as vLLM)."""

    def __init__(self, questions: Sequence[Question], *, ids: bool) -> None:
        self.questions, self.ids = questions, ids
        self.served = questions[0].served
        self.head = {
            "id": f"{self.prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": self.served.name,
        }

    prefix = ""
    kind, chunk_kind = "", ""

    def whole(self, answers: Sequence[Answer]) -> Data:
        """Return the response to a request that is not streamed."""
        told: Data = {
            **self.head,
            "object": self.kind,
            "choices": [
                self._choice(number, question, answer)
                for number, (question, answer) in enumerate(
                    zip(self.questions, answers, strict=True)
                )
            ],
            "usage": usage(self.questions, answers),
        }
        return told

    def first_chunks(self) -> Iterable[Data]:
        """Return what a stream begins with."""
        return ()

    def chunk(self, piece: Piece) -> Data:
        """Return a piece as a chunk of a stream."""
        raise NotImplementedError

    def last_chunk(self, answer: Answer) -> Data:
        """Return the chunk that says why an answer ended."""
        raise NotImplementedError

    def usage_chunk(self, answer: Answer) -> Data:
        """Return the chunk that counts the tokens."""
        return self._as_chunk([]) | {"usage": usage(self.questions, [answer])}

    def _choice(self, number: int, question: Question, answer: Answer) -> Data:
        raise NotImplementedError

    def _as_chunk(self, choices: list[Data]) -> Data:
        return {**self.head, "object": self.chunk_kind, "choices": choices}

    def _token_ids(self, tokens: Sequence[Token]) -> Data:
        return {"token_ids": [token.id for token in tokens]} if self.ids else {}

    def _word(self, token: int) -> str:
        return self.served.word(token)


class ChatResponse(Response):
    """The answer to a request of /v1/chat/completions."""

    prefix = "chatcmpl"
    kind, chunk_kind = "chat.completion", "chat.completion.chunk"

    def whole(self, answers: Sequence[Answer]) -> Data:
        """Return the response to a request that is not streamed."""
        ids = {"prompt_token_ids": self.questions[0].ids} if self.ids else {}
        return super().whole(answers) | ids

    def first_chunks(self) -> Iterable[Data]:
        """Return the chunk that says who speaks."""
        delta = {"role": "assistant", "content": ""}
        ids = {"prompt_token_ids": self.questions[0].ids} if self.ids else {}
        yield self._as_chunk([self._part(delta, None)]) | ids

    def chunk(self, piece: Piece) -> Data:
        """Return a piece as a chunk of a stream."""
        part = self._part({"content": piece.text}, None, self._logprobs(piece.tokens))
        return self._as_chunk([part | self._token_ids(piece.tokens)])

    def last_chunk(self, answer: Answer) -> Data:
        """Return the chunk that says why an answer ended."""
        return self._as_chunk([self._part({}, answer.finish)])

    def _part(self, delta: Data, finish: str | None, logprobs: Any = None) -> Data:
        return {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}

    def _choice(self, number: int, question: Question, answer: Answer) -> Data:
        return {
            "index": number,
            "message": {"role": "assistant", "content": answer.text, "refusal": None},
            "logprobs": self._logprobs(answer.tokens),
            "finish_reason": answer.finish,
            **self._token_ids(answer.tokens),
        }

    def _logprobs(self, tokens: Sequence[Token]) -> Data | None:
        if self.questions[0].top is None:
            return None
        return {
            "content": [
                self._named(token.id, token.logp or 0.0)
                | {"top_logprobs": [self._named(*one) for one in token.top]}
                for token in tokens
            ],
            "refusal": None,
        }

    def _named(self, token: int, logp: float) -> Data:
        word = self._word(token)
        whole = None if "\ufffd" in word else list(word.encode("utf-8", "replace"))
        return {"token": word, "logprob": logp, "bytes": whole}


class CompletionResponse(Response):
    """The answer to a request of /v1/completions."""

    prefix = "cmpl"
    kind = chunk_kind = "text_completion"

    def first_chunks(self) -> Iterable[Data]:
        """Return the prompt as a chunk, where it is to be repeated."""
        if self.questions[0].echo:
            text = self.served.tokenizer.decode(self.questions[0].ids)
            yield self._as_chunk([self._part(0, text, None, None)])

    def chunk(self, piece: Piece) -> Data:
        """Return a piece as a chunk of a stream."""
        logprobs = self._logprobs(self.questions[0], piece.tokens)
        part = self._part(0, piece.text, None, logprobs) | self._token_ids(piece.tokens)
        return self._as_chunk([part])

    def last_chunk(self, answer: Answer) -> Data:
        """Return the chunk that says why an answer ended."""
        return self._as_chunk([self._part(0, "", answer.finish, None)])

    @staticmethod
    def _part(number: int, text: str, finish: str | None, logprobs: Any) -> Data:
        return {"index": number, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def _choice(self, number: int, question: Question, answer: Answer) -> Data:
        before = self.served.tokenizer.decode(question.ids) if question.echo else ""
        logprobs = self._logprobs(question, [*answer.prompt, *answer.tokens])
        ids = {"prompt_token_ids": question.ids} if self.ids else {}
        part = self._part(number, before + answer.text, answer.finish, logprobs)
        return part | self._token_ids(answer.tokens) | ids

    def _logprobs(self, question: Question, tokens: Sequence[Token]) -> Data | None:
        if question.top is None:
            return None
        words = [self._word(token.id) for token in tokens]
        starts = [0]
        for word in words:
            starts.append(starts[-1] + len(word))
        return {
            "tokens": words,
            "token_logprobs": [token.logp for token in tokens],
            "top_logprobs": [
                {self._word(i): logp for i, logp in reversed(token.top)} if token.top else None
                for token in tokens
            ],
            "text_offset": starts[:-1],
        }


def usage(questions: Sequence[Question], answers: Sequence[Answer]) -> Data:
    """Return how many tokens were read and written; a prompt counts once, however often asked."""
    read = sum(len(question.ids) for question in questions if not question.choice)
    written = sum(len(answer.tokens) for answer in answers)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
