"""Rows as token ids: what is read, what is learnt, and what happens to a row that is too long."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from llmft.api import ChatRow, CompletionRow, Encoded, Message, Prompt, PromptRow, Row, TextRow
from llmft.api.errors import DataError, LlmftError
from llmft.api.rows import IGNORED
from llmft.api.settings import TrainSettings
from llmft.data.bounded_rendering import rendered
from llmft.data.bounded_tokens import BoundedTokens
from llmft.data.cache import through_cache

EXAMPLES = 100
"""Of so many rows that were cut or dropped, for each reason, it is kept where they came from."""


@dataclass
class EncodingReport:
    """How many rows were cut or dropped, by reason; nothing vanishes without being counted.

    examples: the origins of the first `EXAMPLES` rows of each reason.
    """

    rows: int = 0
    kept: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def count(self, why: str, origin: str) -> None:
        """Count a row that was cut or dropped; where the first ones came from is kept."""
        self.counts[why] += 1
        if len(origins := self.examples.setdefault(why, [])) < EXAMPLES:
            origins.append(origin)

    def note(self) -> str:
        """Return what a person should know, or '' where every row went in whole."""
        if not self.counts:
            return ""
        said = ", ".join(
            f"{n} {why} ({n / self.rows:.1%})" for why, n in sorted(self.counts.items())
        )
        return f"of {self.rows} rows: {said}"

    def refuse_losses(self, settings: TrainSettings) -> None:
        """Raise DataError where more rows are lost than `max_dropped` (E104), or all (E105)."""
        lost = self.rows - self.kept
        if self.rows and not self.kept:
            raise DataError(
                "E105",
                f"no row has a trained-on token left ({self.note()})",
                fix="raise train.max_length, or check the completions",
            )
        if lost > settings.max_dropped * self.rows:
            raise DataError(
                "E104",
                f"{lost} of {self.rows} rows would be dropped ({lost / self.rows:.1%},"
                f" more than max_dropped: {settings.max_dropped:g}): {self.note()}",
                fix="raise train.max_length, or allow it with train.max_dropped",
            )


class Encoder:
    """Turns rows into token ids with one tokenizer and one maximal length."""

    def __init__(self, tokenizer: Any, max_length: int | None) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.end = end_of_text(tokenizer)
        self._tokens = BoundedTokens(tokenizer)

    def encode(
        self, rows: Sequence[Row], settings: TrainSettings, *, refuse: bool = True
    ) -> tuple[list[Encoded], EncodingReport]:
        """Return the rows that can be learnt from, and the count of those cut or dropped.

        refuse: False to look at rows of which too many are lost.
        Raises DataError where `on_long_row` is 'fail' and a row is too long (E106), where a larger
        share than `max_dropped` is lost (E104), and where nothing is left to learn (E105).
        """
        report = EncodingReport(rows=len(rows))
        kept: list[Encoded] = []
        for encoded in through_cache(self.tokenizer, rows, "rows", lambda: self._all(rows)):
            whole = self._fitted(encoded, settings.on_long_row, report)
            if whole is not None:
                kept.append(whole)
        report.kept = len(kept)
        if refuse:
            report.refuse_losses(settings)
        return kept, report

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Return the ids of a prompt that is to be answered."""
        if isinstance(prompt, str):
            return self._ids(prompt)
        return self._ids(self.render(prompt, answer_next=True), special=True)

    def render(self, messages: Iterable[Message], *, answer_next: bool) -> str:
        """Return a conversation as the model's chat template writes it."""
        if not getattr(self.tokenizer, "chat_template", None):
            raise DataError(
                "E108",
                "the tokenizer has no chat template, and the rows are conversations",
                fix="set model.chat_template, or use prompt and completion columns",
            )
        try:
            return rendered(self.tokenizer, list(messages), add_generation_prompt=answer_next)
        except ValueError as error:
            raise DataError(
                "E108",
                f"the chat template refuses a conversation: {error}",
                fix="change the conversation, or set another model.chat_template",
            ) from error

    def _all(self, rows: Sequence[Row]) -> Iterable[Encoded]:
        for row in rows:
            with naming_row(row.origin):
                encoded = self._one(row)
            yield encoded

    def _one(self, row: Row) -> Encoded:
        if isinstance(row, TextRow):
            ids = self._with_end(self._ids(row.text))
            return Encoded(tuple(ids), tuple(ids), row.origin)
        if isinstance(row, CompletionRow):
            return self.completion(row)
        if isinstance(row, ChatRow):
            return self._chat(row)
        if isinstance(row, PromptRow):
            raise DataError("E105", f"{row.origin}: a prompt alone has no tokens to train on")
        raise DataError("E105", f"{row.origin}: a {type(row).__name__} is not one sequence")

    def completion(self, row: CompletionRow) -> Encoded:
        """Return a prompt with its completion as ids, whole, however long."""
        if isinstance(row.prompt, str):
            return self._split_at(self._ids(row.prompt), row.prompt + row.completion, row.origin)
        answer: Message = {"role": "assistant", "content": row.completion}
        whole = self.render((*row.prompt, answer), answer_next=False)
        prompt = self.render(row.prompt, answer_next=True)
        if not whole.startswith(prompt):
            raise DataError(
                "E108",
                f"{row.origin}: the chat template formats a conversation differently once it is"
                " answered, so the answer cannot be told from the prompt",
                fix="set another model.chat_template",
            )
        return self._split_at(
            self._ids(prompt, special=True), whole, row.origin, special=True, end=False
        )

    def _split_at(
        self, prompt: list[int], whole: str, origin: str, *, special: bool = False, end: bool = True
    ) -> Encoded:
        """Return the whole text's ids, learnt from where the prompt's ids end.

        Where the tokenizer merges across the boundary, the ids of the prompt alone come first, as
        they will when the prompt is answered, and the rest of the text is encoded after them.
        """
        ids = self._ids(whole, special=special)
        if ids[: len(prompt)] != prompt:
            prompt_text = self.tokenizer.decode(prompt, skip_special_tokens=not special)
            rest = whole[len(prompt_text) :] if whole.startswith(prompt_text) else None
            if rest is None:
                rest = whole[_common_prefix(whole, prompt_text) :]
            ids = prompt + self._ids(rest, special=special, start=False)
        if end:
            ids = self._with_end(ids)
        labels = [IGNORED] * len(prompt) + ids[len(prompt) :]
        return Encoded(tuple(ids), tuple(labels), origin)

    def _chat(self, row: ChatRow) -> Encoded:
        """Return a conversation in which every assistant turn is learnt.

        Where the tokenizer merges across a turn's start, it is as in `_split_at`.
        """
        whole = self.render(row.messages, answer_next=False)
        ids: list[int] = []
        labels: list[int] = []
        done = ""
        for turn, message in enumerate(row.messages):
            if message["role"] != "assistant":
                continue
            before = self.render(row.messages[:turn], answer_next=True)
            after = self.render(row.messages[: turn + 1], answer_next=False)
            pieces = (done, before, after, whole)
            if not all(longer.startswith(shorter) for shorter, longer in pairwise(pieces)):
                raise DataError(
                    "E108",
                    f"{row.origin}: the chat template rewrites earlier turns, so turn {turn}"
                    " cannot be found in the whole",
                    fix="train on the last turn only (data.learn: last), or set another"
                    " model.chat_template",
                )
            asked = self._extended(ids, done, before)
            answered = self._extended(asked, before, after)
            labels += [IGNORED] * (len(asked) - len(ids)) + answered[len(asked) :]
            ids, done = answered, after
        ids = self._extended(ids, done, whole)
        labels += [IGNORED] * (len(ids) - len(labels))
        return Encoded(tuple(ids), tuple(labels), row.origin)

    def _extended(self, ids: list[int], text: str, longer: str) -> list[int]:
        """Return the ids of a longer text, which begin with those of the text before it."""
        whole = self._ids(longer, special=True)
        if whole[: len(ids)] == ids:
            return whole
        return ids + self._ids(longer[len(text) :], special=True)

    def _fitted(self, row: Encoded, rule: str, report: EncodingReport) -> Encoded | None:
        limit = self.max_length
        if limit is not None and len(row.input_ids) > limit:
            if rule == "fail":
                raise DataError(
                    "E106",
                    f"{row.origin}: the row has {len(row.input_ids)} tokens, more than {limit}",
                    fix="raise train.max_length, or set train.on_long_row to truncate or drop",
                )
            if rule == "drop":
                report.count("dropped, too long", row.origin)
                return None
            row = Encoded(row.input_ids[:limit], row.labels[:limit], row.origin)
            if not row.n_labels:
                report.count("dropped, the prompt alone is too long", row.origin)
                return None
            report.count("truncated", row.origin)
        if not row.n_labels:
            report.count("dropped, no trained-on token", row.origin)
            return None
        return row

    def _ids(self, text: str, *, special: bool = False, start: bool = True) -> list[int]:
        """Return ids; words like '</s>' in the user's text stay plain text unless `special`."""
        ids = self._tokens.ids(
            text,
            # A rendered chat template writes its own special tokens.
            add_special_tokens=start and not special,
            split_special_tokens=not special,
            truncation=False,
            verbose=False,
        )
        # Some tokenizers close every text; a prompt is not closed.
        closed = start and not special and len(ids) > 1 and ids[-1] == self.end
        return ids[:-1] if closed else ids

    def _with_end(self, ids: list[int]) -> list[int]:
        return ids if self.end is None else [*ids, self.end]


@contextmanager
def naming_row(origin: str) -> Iterator[None]:
    """Let a fault of the tokenizer or of the chat template say which row it is about."""
    try:
        yield
    except LlmftError as error:
        if not origin or origin in str(error):
            raise
        named = [replace(f, what=f"{origin}: {f.what}") for f in error.faults]
        raise type(error).of(named) from error


def end_of_text(tokenizer: Any) -> int | None:
    """Return the id that ends a text: end-of-text, or BERT's separator, or None."""
    for token in (tokenizer.eos_token_id, tokenizer.sep_token_id):
        if token is not None:
            return int(token)
    return None


def _common_prefix(a: str, b: str) -> int:
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )
