"""Conversations as token ids: rendered by the chat template, trained on where they should be.

Which characters are trained on is found in the rendering (`turns.py`); here they become tokens. The
tokens before an answer are those that serving sends: where a token would reach over an answer's
start, prompt and answer are tokenised apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from llmft.api import ChatRow, CompletionRow, Conversation, Encoded, Message, Prompt, Row, TextRow
from llmft.api.errors import DataError, EnvironmentFault, LlmftError
from llmft.api.rows import IGNORED
from llmft.data.bounded_rendering import Wanted, Writing, written
from llmft.data.chat_format import ChatFormat, stops_of
from llmft.data.tokens import Located, TokenReader
from llmft.data.turns import TurnFault, TurnRow

T = TypeVar("T")


class RowFault(Exception):
    """A row that cannot be trained on; the text names where it came from."""

    def __init__(self, code: str, what: str, fix: str) -> None:
        super().__init__(what)
        self.code, self.what, self.fix = code, what, fix

    def refused(self) -> DataError:
        """Return the fault as the error that a user sees."""
        return DataError(self.code, self.what, fix=self.fix)


@dataclass(slots=True)
class Draft:
    """A rendering that is to become a token row.

    apart: whether its answers may be tokenised apart from what stands before them; where not, and
    they have to be, the conversation becomes a row for each turn.
    """

    row: TurnRow
    origin: str
    apart: bool = True


class ChatEncoder:
    """Turns conversations into token ids with one tokenizer, chat template and chat format."""

    def __init__(self, tokenizer: Any, chat: ChatFormat, end: int | None) -> None:
        self.tokenizer, self.chat = tokenizer, chat
        self.reads_clock = False
        self.reader = TokenReader(tokenizer)
        self.stops = stops_of(tokenizer, chat, end)
        self.control = frozenset(
            (*self.stops.stops, *self.stops.control, *map(str, _added(tokenizer)))
        )
        self._writings: dict[str, Writing] = {}

    def drafts(self, group: tuple[Row, ...], rows: bool = False) -> list[Draft]:
        """Return what is written of rows by the chat template; RowFault where it cannot be.

        rows: write a conversation as a row for each turn, whatever it asks for.
        """
        drafts = []
        for row in group:
            assert isinstance(row, CompletionRow | ChatRow)
            with _located(row.origin):
                if isinstance(row, ChatRow):
                    found = self._write(row.messages, _wanted(row, rows))
                else:
                    found = self._answered(row)
            whole = isinstance(row, ChatRow) and row.turns == "auto" and not rows
            drafts += [Draft(one, row.origin, not (whole and len(one.spans) > 1)) for one in found]
        return drafts

    def places(self, drafts: Sequence[Draft]) -> list[Located | None]:
        """Return the tokens of texts that are tokenised in one go; None for the others."""
        whole = [n for n, draft in enumerate(drafts) if self.reader.fast and not draft.row.foreign]
        found: list[Located | None] = [None] * len(drafts)
        named = [(drafts[n].row.text, drafts[n].origin) for n in whole]
        for number, place in zip(whole, one_go(self.reader.located, named), strict=True):
            found[number] = place
        return found

    def token_rows(
        self,
        group: tuple[Row, ...],
        drafts: list[Draft],
        places: Sequence[Located | None],
        facts: Counter[str],
    ) -> list[Encoded]:
        """Return the token rows of a group of rows, counting what a person should know of them."""
        try:
            made = [self._labelled(*both) for both in zip(drafts, places, strict=True)]
        except _NeedsRows:
            drafts = self.drafts(group, rows=True)
            made = [self._labelled(*b) for b in zip(drafts, self.places(drafts), strict=True)]
        _count(drafts, facts)
        return made

    def prompt_ids(self, prompt: Sequence[Message], origin: str) -> list[int]:
        """Return the ids of messages that are to be answered."""
        with _located(origin):
            (row,) = self._write(prompt, Wanted("prompt"))
            if not row.foreign:
                return self.reader.ids(row.text)
            return self.reader.apart(row.text, (), row.foreign).ids

    def render(self, messages: Sequence[Message], *, answer_next: bool) -> str:
        """Return a conversation as the model's chat template writes it."""
        with _located(""):
            (row,) = self._write(messages, Wanted("text", answer_next=answer_next))
        return row.text

    def _answered(self, row: CompletionRow) -> list[TurnRow]:
        assert not isinstance(row.prompt, str)
        answer = row.message or Message(role="assistant", content=row.completion)
        given = _conversation(row.prompt)
        messages = given.of((*given, answer))
        return self._write(messages, Wanted("whole", (len(messages) - 1,)))

    def _write(self, messages: Sequence[Message], wanted: Wanted) -> list[TurnRow]:
        given = _conversation(messages)
        writing = self._writing(given)
        rows, clock = written(writing, given, given.tools, given.template_kwargs, wanted)
        self.reads_clock = self.reads_clock or clock
        return rows

    def _writing(self, given: Conversation) -> Writing:
        if not getattr(self.tokenizer, "chat_template", None):
            raise DataError(
                "E108",
                "the tokenizer has no chat template, and the rows are conversations",
                fix="set model.chat_template, or use prompt and completion columns",
            )
        if _writes_by_code(self.tokenizer):
            raise DataError(
                "E108",
                f"the tokenizer '{type(self.tokenizer).__name__}' writes conversations by code of"
                " its own, so it cannot be told what is trained on",
                fix="use prompt and completion columns, or another tokenizer",
            )
        try:
            source = self.tokenizer.get_chat_template(None, list(given.tools) or None)
        except ValueError as error:
            raise TurnFault("refused", str(error), "name one as model.chat_template") from error
        if source not in self._writings:
            # Of several templates one may read what another does not.
            several = isinstance(self.tokenizer.chat_template, Mapping)
            names = {**self.tokenizer.special_tokens_map, **self.chat.template_kwargs}
            self._writings[source] = Writing(
                source, names, self.chat.date, self.stops,
                self.chat.lost_text, self.chat.missing_stop, self.chat.learn_template,
                () if several else tuple(self.chat.template_kwargs),
            )  # fmt: skip
        return self._writings[source]

    def _labelled(self, draft: Draft, place: Located | None) -> Encoded:
        """Return a draft's token row; RowFault where its tokens are not as its text is."""
        row, starts = draft.row, None
        alone = self.chat.tokenize_apart and bool(row.turns)
        if place is not None and row.turns and not alone:
            starts = self._prompt_lengths(place, row)
            if starts is None and not draft.apart:
                raise _NeedsRows
        elif place is not None and not alone:
            starts = [place.at(start) for start, _ in row.spans]
        if place is None or starts is None:
            cuts = [border for span in row.spans for border in span]
            with _located(draft.origin):
                place = self.reader.apart(row.text, cuts, row.foreign, alone=alone)
            starts = [place.at(start) for start, _ in row.spans]
        labels = [IGNORED] * len(place.ids)
        turns = row.turns or (None,) * len(row.spans)
        for first, (_, stop), turn in zip(starts, row.spans, turns, strict=True):
            last = place.at(stop)
            labels[first:last] = place.ids[first:last]
            if turn is None or turn in row.unended:
                continue
            cut = self.chat.learn_template != "stop"
            if last == first or not (cut or place.ids[last - 1] in self.stops.ids):
                ended = row.text[:stop][-20:]
                what = f"the end of the answer, {ended!r}, is no token at which generation stops"
                fix = "name one token of the tokenizer as model.stop, or give another template"
                raise RowFault("E108", at(draft.origin, what), fix)
        end = self._last(place.ids)
        return Encoded((*place.ids, *end), (*labels, *end), draft.origin)

    def _last(self, ids: Sequence[int]) -> tuple[int, ...]:
        """Return the end-of-text that is put at a row's end, and learnt, if it is."""
        if not self.stops.ends_rows:
            return ()
        end = self.tokenizer.eos_token_id
        return () if self.chat.append_eos == "once" and ids and ids[-1] == end else (end,)

    def _prompt_lengths(self, place: Located, row: TurnRow) -> list[int] | None:
        """Return where each answer's tokens begin, if what stands before is as it is asked."""
        starts = []
        for start, _ in row.spans:
            count = self.reader.prompt_length(place, row.text, start)
            if count is None:
                return None
            starts.append(count)
        return starts


class _NeedsRows(Exception):
    """A conversation whose answers cannot be tokenised with what stands before them."""


def is_chat(group: tuple[Row, ...]) -> bool:
    """Return whether rows go through the chat template."""
    return any(
        isinstance(row, ChatRow)
        or (isinstance(row, CompletionRow) and not isinstance(row.prompt, str))
        for row in group
    )


def texts_of(row: Row) -> tuple[str, ...]:
    """Return the texts of a row that is not a conversation."""
    if isinstance(row, CompletionRow) and isinstance(row.prompt, str):
        return (row.prompt, row.completion)
    return (row.text,) if isinstance(row, TextRow) else ()


def one_go(read: Callable[[list[str]], list[T]], texts: Sequence[tuple[str, str]]) -> list[T]:
    """Return what is read of texts, each with its row's origin, together.

    Where that fails, they are read one by one, so that the fault names its row.
    """
    try:
        return read([text for text, _ in texts])
    except EnvironmentFault:
        found: list[T] = []
        for text, origin in texts:
            with naming_row(origin):
                found += read([text])
        return found


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


@contextmanager
def _located(origin: str) -> Iterator[None]:
    """Turn what is wrong with a conversation into a RowFault that names its row."""
    try:
        with naming_row(origin):
            yield
    except TurnFault as fault:
        raise RowFault("E108", at(origin, fault.what), fault.fix) from fault
    except ValueError as error:
        fix = "change the text, or use another tokenizer"
        raise RowFault("E108", at(origin, str(error)), fix) from error


def at(origin: str, what: str) -> str:
    """Return what is said of a row, after where it came from."""
    return f"{origin}: {what}" if origin else what


def _added(tokenizer: Any) -> list[Any]:
    return list(tokenizer.added_tokens_decoder.values())


def _conversation(messages: Prompt | Sequence[Message]) -> Conversation:
    assert not isinstance(messages, str)
    return messages if isinstance(messages, Conversation) else Conversation(messages)


def _wanted(row: ChatRow, rows: bool) -> Wanted:
    """Return what a conversation asks for. Raises TurnFault where no turn is left to learn."""
    every = [n for n, m in enumerate(row.messages) if m["role"] == "assistant"]
    turns = tuple(n for n in every if n not in row.skip)
    if row.learn == "last":
        turns = turns[-1:] if turns and turns[-1] == every[-1] else ()
    if row.learn == "every_token":
        if row.skip:
            raise TurnFault(
                "empty",
                f"turn {row.skip[0]} is not to be trained on (its weight is 0), and"
                " data.learn: every_token trains on all of it",
                "write data.learn: all, or take the weights out of the rows",
            )
        return Wanted("every_token")
    if isinstance(row.learn, tuple) and set(row.learn) != {"assistant"}:
        spoken = {n for n, m in enumerate(row.messages) if m["role"] in row.learn}
        if not spoken - set(row.skip):
            raise TurnFault("empty", f"there is no turn of {', '.join(row.learn)} to train on")
        return Wanted("roles", tuple(sorted(spoken - set(row.skip))))
    if not turns:
        raise TurnFault("empty", "no turn of the assistant is left to train on")
    return Wanted("rows" if rows else row.turns, turns)


def _writes_by_code(tokenizer: Any) -> bool:
    from transformers import PreTrainedTokenizerBase

    usual: Any = PreTrainedTokenizerBase.apply_chat_template
    return getattr(type(tokenizer), "apply_chat_template", usual) is not usual


def _count(drafts: Sequence[Draft], facts: Counter[str]) -> None:
    """Count what a person should know of a group's rows."""
    if len(drafts) > 1 and drafts[0].row.turns != drafts[1].row.turns:
        facts["conversations with a row for each turn, as the model is asked"] += 1
    for draft in drafts:
        if draft.row.foreign:
            facts["rows with special tokens in a message, which stay text"] += 1
        facts.update(draft.row.notes)
