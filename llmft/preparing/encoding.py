"""Rows as token ids: what is read, what is trained on, and what happens to a row too long."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

from llmft.api import (
    ChatRow,
    CompletionRow,
    Conversation,
    Encoded,
    Message,
    PreferenceRow,
    Prompt,
    PromptRow,
    Row,
    TextRow,
)
from llmft.errors import DataError
from llmft.preparing import templates
from llmft.preparing.cache import through_cache
from llmft.preparing.chat_format import PLAIN, ChatFormat, stops_of
from llmft.preparing.rendering import ChatTemplate
from llmft.preparing.tokens import Located, TokenReader
from llmft.preparing.turns import TurnFault, TurnFinder, TurnRow
from llmft.rows import IGNORED
from llmft.settings import TrainSettings

T = TypeVar("T")
_CHUNK = 512
_SHOWN = 3


@dataclass
class EncodingReport:
    """How many rows were cut or dropped, by reason; nothing vanishes without being counted.

    rows: token rows that were made. turned: how many of the conversations became a row for each
    turn. remarks: how often something else was met that a person should know.
    """

    rows: int = 0
    kept: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    remarks: Counter[str] = field(default_factory=Counter)

    def note(self) -> str:
        """Return what a person should know, or '' where every row went in whole."""
        said = []
        if self.counts:
            counts = ", ".join(
                f"{n} {why} ({n / self.rows:.1%})" for why, n in sorted(self.counts.items())
            )
            said.append(f"of {self.rows} rows: {counts}")
        said += [f"{why}: {n:,}" for why, n in sorted(self.remarks.items())]
        return "; ".join(said)

    def refuse_losses(self, settings: TrainSettings) -> None:
        """Raise DataError where more rows are lost than `max_dropped` (E104), or all (E105)."""
        lost = self.rows - self.kept
        if self.rows and not self.kept:
            raise DataError(
                "E105",
                f"no token of any row is left to learn ({self.note()})",
                fix="raise train.max_length, or check the completions",
            )
        if lost > settings.max_dropped * self.rows:
            raise DataError(
                "E104",
                f"{lost} of {self.rows} rows would be dropped ({lost / self.rows:.1%},"
                f" more than max_dropped: {settings.max_dropped:g}): {self.note()}",
                fix="raise train.max_length, or allow it with train.max_dropped",
            )


class RowFault(Exception):
    """A row that cannot be trained on; the text names where it came from."""

    def __init__(self, code: str, what: str, fix: str) -> None:
        super().__init__(what)
        self.code, self.what, self.fix = code, what, fix


@dataclass(slots=True)
class _Draft:
    """A text that is to become a token row, with what is trained on in it.

    apart: whether its answers may be tokenised apart from what stands before them; where not, and
    they have to be, the conversation becomes a row for each turn.
    """

    row: TurnRow
    origin: str
    apart: bool = True


class Encoder:
    """Turns rows into token ids with one tokenizer, one chat template and one maximal length."""

    def __init__(self, tokenizer: Any, max_length: int | None, chat: ChatFormat = PLAIN) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.chat = chat
        self.end = end_of_text(tokenizer)
        self._reader = TokenReader(tokenizer)
        self._stops = stops_of(tokenizer, chat, self.end)
        self._templates: dict[str, ChatTemplate] = {}

    def encode(
        self, rows: Sequence[Row], settings: TrainSettings
    ) -> tuple[list[Encoded], EncodingReport]:
        """Return the rows that can be learnt from, and the count of those cut or dropped.

        A conversation may become several rows. Raises DataError where a row cannot be written by
        the chat template as it is asked (E108), where `on_long_row` is 'fail' and a row is too
        long (E106), where a larger share than `max_dropped` is lost (E104), and where nothing is
        left to learn (E105).
        """
        report = EncodingReport()
        kept: list[Encoded] = []
        for made in self.made([(row,) for row in rows], "rows", report.remarks):
            for encoded in made:
                report.rows += 1
                whole = self._fitted(encoded, settings.on_long_row, report)
                if whole is not None:
                    kept.append(whole)
        report.kept = len(kept)
        report.refuse_losses(settings)
        return kept, report

    def made(
        self, groups: Sequence[tuple[Row, ...]], kind: str, remarks: Counter[str]
    ) -> Iterable[Sequence[Encoded]]:
        """Return the token rows of each group of rows, whole, however long.

        remarks: gets what a person should know. Raises DataError at the first rows that cannot be
        written as they are asked.
        """
        rows = [row for group in groups for row in group]
        key = f"{kind} {self.chat} {self._stops}"
        facts: Counter[str] = Counter()
        made = through_cache(
            self.tokenizer, rows, len(groups), key, lambda: self._made(groups, facts, None), facts
        )
        yield from made
        remarks.update(facts)

    def refusals(self, rows: Sequence[Row]) -> dict[int, str]:
        """Return the rows that the chat template cannot write, by their number, each with why."""
        groups = {n: group for n, row in enumerate(rows) if _is_chat(group := answers_of(row))}
        refused: dict[int, str] = {}
        for _ in self._made(list(groups.values()), Counter(), refused):
            pass
        found = {n: refused[i] for i, n in enumerate(groups) if i in refused}
        for number, row in enumerate(rows):
            if isinstance(row, PromptRow) and not isinstance(row.prompt, str):
                try:
                    self.prompt_ids(row.prompt, row.origin)
                except DataError as error:
                    found[number] = error.faults[0].what
        return found

    def prompt_ids(self, prompt: Prompt, origin: str = "") -> list[int]:
        """Return the ids of a prompt that is to be answered."""
        if isinstance(prompt, str):
            return self._ids(prompt)
        try:
            row = self._found(prompt, lambda finder: finder.prompt())
            if not row.foreign:
                return self._reader.ids(row.text)
            return self._reader.apart(row.text, (), row.foreign).ids
        except (TurnFault, ValueError) as fault:
            raise _refused(_located(fault, origin)) from fault

    def render(self, messages: Iterable[Message], *, answer_next: bool) -> str:
        """Return a conversation as the model's chat template writes it."""
        given = messages if isinstance(messages, Conversation) else Conversation(messages)
        try:
            finder = self._finder(given)
            return finder.render(len(given), answer_next=answer_next)
        except TurnFault as fault:
            raise _refused(_located(fault, "")) from fault

    def completion(self, row: CompletionRow) -> Encoded:
        """Return a prompt with its completion as ids, whole, however long."""
        ((encoded,),) = self._made([(row,)], Counter(), None)
        return encoded

    def _made(
        self,
        groups: Sequence[tuple[Row, ...]],
        facts: Counter[str],
        refused: dict[int, str] | None,
    ) -> Iterator[list[Encoded]]:
        """Yield the token rows of each group; a refused one has none.

        refused: gets the groups that are refused, by number; None: they are raised as DataError,
        the first few of a chunk together.
        """
        numbers = iter(range(len(groups)))
        while chunk := list(islice(numbers, _CHUNK)):
            texts = [n for n in chunk if not _is_chat(groups[n])]
            made = dict(zip(texts, self._texts([groups[n] for n in texts]), strict=True))
            drafts: dict[int, list[_Draft]] = {}
            faults: dict[int, RowFault] = {}
            for number in (n for n in chunk if n not in made):
                try:
                    drafts[number] = self._drafts(groups[number])
                except RowFault as fault:
                    faults[number] = fault
            places = iter(self._located([one for group in drafts.values() for one in group]))
            for number, group in drafts.items():
                of_group = [next(places) for _ in group]
                try:
                    made[number] = self._tokens(groups[number], group, of_group, facts)
                except RowFault as fault:
                    faults[number] = fault
            if faults and refused is None:
                raise _together([faults[n] for n in sorted(faults)], len(groups))
            if refused is not None:
                refused.update({n: fault.what for n, fault in faults.items()})
            yield from (made.get(n, []) for n in chunk)

    def _tokens(
        self,
        group: tuple[Row, ...],
        drafts: list[_Draft],
        places: Sequence[Located | None],
        facts: Counter[str],
    ) -> list[Encoded]:
        """Return the token rows of a group of rows, counting what a person should know of them."""
        try:
            made = [self._labelled(*both) for both in zip(drafts, places, strict=True)]
        except _NeedsRows:
            drafts = self._drafts(group, rows=True)
            places = self._located(drafts)
            made = [self._labelled(*both) for both in zip(drafts, places, strict=True)]
        _count(drafts, facts)
        return made

    def _drafts(self, group: tuple[Row, ...], rows: bool = False) -> list[_Draft]:
        """Return what is written of rows by the chat template; RowFault where it cannot be."""
        drafts = []
        for row in group:
            assert isinstance(row, CompletionRow | ChatRow)
            try:
                if isinstance(row, ChatRow):
                    found = self._conversation(row, rows)
                else:
                    found = [self._answered(row)]
            except TurnFault as fault:
                raise _located(fault, row.origin) from fault
            whole = isinstance(row, ChatRow) and row.turns == "auto" and not rows
            drafts += [_Draft(one, row.origin, not (whole and len(one.spans) > 1)) for one in found]
        return drafts

    def _answered(self, row: CompletionRow) -> TurnRow:
        assert not isinstance(row.prompt, str)
        answer = row.message or Message(role="assistant", content=row.completion)
        prompt = row.prompt if isinstance(row.prompt, Conversation) else Conversation(row.prompt)
        messages = prompt.of((*prompt, answer))
        return self._found(messages, lambda finder: finder.whole((len(messages) - 1,)))

    def _conversation(self, row: ChatRow, rows: bool) -> list[TurnRow]:
        every = [n for n, m in enumerate(row.messages) if m["role"] == "assistant"]
        turns = [n for n in every if n not in row.skip]
        if row.learn == "last":
            turns = turns[-1:] if turns and turns[-1] == every[-1] else []
        if row.learn == "every_token":
            return [self._found(row.messages, lambda finder: finder.every_token())]
        if isinstance(row.learn, tuple) and set(row.learn) != {"assistant"}:
            roles = row.learn
            known = turns if "assistant" in roles else []
            return [self._found(row.messages, lambda finder: finder.roles(roles, known))]
        if not turns:
            raise TurnFault("empty", "no turn of the assistant is left to learn")
        if row.turns == "rows" or rows:
            return self._found(row.messages, lambda finder: finder.rows(turns))
        try:
            return [self._found(row.messages, lambda finder: finder.whole(turns))]
        except TurnFault as fault:
            if fault.kind != "whole" or row.turns == "whole":
                raise
        return self._found(row.messages, lambda finder: finder.rows(turns))

    def _found(self, messages: Sequence[Message], ask: Callable[[TurnFinder], T]) -> T:
        """Return what a question to a conversation's finder gives.

        Some templates take content as a list of parts only: where content as text is refused or
        lost, it is given so. Each row is tried alone, so none depends on those before it.
        """
        given = messages if isinstance(messages, Conversation) else Conversation(messages)
        try:
            return ask(self._finder(given))
        except TurnFault as fault:
            if fault.kind not in ("refused", "lost"):
                raise
            try:
                return ask(self._finder(given, in_parts=True))
            except TurnFault:
                raise fault from None

    def _finder(self, given: Conversation, in_parts: bool = False) -> TurnFinder:
        template = self._template(given)
        messages: Sequence[Mapping[str, Any]] = given
        if "developer" not in template.source:
            messages = [
                {**m, "role": "system"} if m["role"] == "developer" else m for m in messages
            ]
        if in_parts:
            messages = [
                {**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages
            ]
        return TurnFinder(
            template,
            messages,
            given.tools,
            self._stops,
            names=given.template_kwargs,
            lost=self.chat.lost_text,
        )

    def _template(self, given: Conversation) -> ChatTemplate:
        if not getattr(self.tokenizer, "chat_template", None):
            raise DataError(
                "E108",
                "the tokenizer has no chat template, and the rows are conversations",
                fix="give one as model.chat_template, or use prompt and completion columns",
            )
        tools = list(given.tools) or None
        try:
            source = self.tokenizer.get_chat_template(None, tools)
        except ValueError as error:
            raise TurnFault("refused", str(error), "name one as model.chat_template") from error
        if source not in self._templates:
            names = {**self.tokenizer.special_tokens_map, **self.chat.template_kwargs}
            self._templates[source] = ChatTemplate(source, names, self.chat.date)
            templates.try_out(self.tokenizer, list(given))
        return self._templates[source]

    @property
    def reads_clock(self) -> bool:
        """Whether a chat template has asked what day it is: it is told the recipe's."""
        return any(template.reads_clock for template in self._templates.values())

    def _texts(self, groups: Sequence[tuple[Row, ...]]) -> list[list[Encoded]]:
        """Return the token rows of groups whose rows are plain text."""
        wholes: list[str] = []
        prompts: list[str] = []
        for row in (row for group in groups for row in group):
            if isinstance(row, TextRow):
                wholes.append(row.text)
            elif isinstance(row, CompletionRow):
                assert isinstance(row.prompt, str)
                if self.end is None:
                    raise DataError(
                        "E108",
                        "the tokenizer has no end-of-text token, so nothing would end an answer",
                        fix="name its eos_token in tokenizer_config.json, or take the tokenizer of"
                        " another model: model.tokenizer",
                    )
                prompts.append(row.prompt)
                wholes.append(row.prompt + row.completion)
            elif isinstance(row, PromptRow):
                raise DataError("E105", f"{row.origin}: a prompt alone has nothing to learn")
            else:
                raise DataError("E105", f"{row.origin}: a {type(row).__name__} is not one sequence")
        whole_ids, prompt_ids = iter(self._all_ids(wholes)), iter(self._all_ids(prompts))
        made = []
        for group in groups:
            of_group = []
            for row in group:
                ids = next(whole_ids)
                if isinstance(row, CompletionRow):
                    prompt = next(prompt_ids)
                    if ids[: len(prompt)] != prompt:  # as when the prompt is answered
                        ids = prompt + self._reader.after(row.completion)
                else:
                    prompt = []
                ids = self._with_end(ids)
                labels = [IGNORED] * len(prompt) + ids[len(prompt) :]
                of_group.append(Encoded(tuple(ids), tuple(labels), row.origin))
            made.append(of_group)
        return made

    def _located(self, drafts: Sequence[_Draft]) -> list[Located | None]:
        """Return the tokens of texts that are tokenised in one go; None for the others."""
        whole = [n for n, draft in enumerate(drafts) if self._reader.fast and not draft.row.foreign]
        found: list[Located | None] = [None] * len(drafts)
        if whole:
            places = self._reader.located([drafts[n].row.text for n in whole])
            for number, place in zip(whole, places, strict=True):
                found[number] = place
        return found

    def _labelled(self, draft: _Draft, place: Located | None) -> Encoded:
        """Return a draft's token row; RowFault where its tokens are not as its text is."""
        row, starts = draft.row, None
        if place is not None and row.turns:
            starts = self._prompt_lengths(place, row)
            if starts is None and not draft.apart:
                raise _NeedsRows
        elif place is not None:
            starts = [place.at(start) for start, _ in row.spans]
        if place is None or starts is None:
            cuts = [border for span in row.spans for border in span]
            try:
                place = self._reader.apart(row.text, cuts, row.foreign)
            except ValueError as error:
                raise _located(error, draft.origin) from error
            starts = [place.at(start) for start, _ in row.spans]
        labels = [IGNORED] * len(place.ids)
        for first, (_, stop) in zip(starts, row.spans, strict=True):
            last = place.at(stop)
            labels[first:last] = place.ids[first:last]
            if row.turns and (last == first or place.ids[last - 1] not in self._stops.ids):
                ended = row.text[:stop][-20:]
                what = f"the end of the answer, {ended!r}, is no token at which generation stops"
                fix = "name one token of the tokenizer as model.stop, or give another template"
                raise RowFault("E108", _at(draft.origin, what), fix)
        return Encoded(tuple(place.ids), tuple(labels), draft.origin)

    def _prompt_lengths(self, place: Located, row: TurnRow) -> list[int] | None:
        """Return where each answer's tokens begin, if what stands before is as it is asked."""
        starts = []
        for start, _ in row.spans:
            count = self._reader.prompt_length(place, row.text, start)
            if count is None:
                return None
            starts.append(count)
        return starts

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
                report.counts["dropped, too long"] += 1
                return None
            row = Encoded(row.input_ids[:limit], row.labels[:limit], row.origin)
            if not row.n_labels:
                report.counts["dropped, the prompt alone is too long"] += 1
                return None
            report.counts["truncated"] += 1
        if not row.n_labels:
            report.counts["dropped, nothing to learn"] += 1
            return None
        return row

    def _ids(self, text: str) -> list[int]:
        """Return a text's ids; words like '</s>' in the user's text stay plain text."""
        return self._all_ids([text])[0]

    def _all_ids(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        found: list[list[int]] = self.tokenizer(
            list(texts),
            add_special_tokens=True,
            split_special_tokens=True,
            truncation=False,
            verbose=False,
        )["input_ids"]
        # Some tokenizers close every text; a prompt is not closed.
        return [ids[:-1] if len(ids) > 1 and ids[-1] == self.end else ids for ids in found]

    def _with_end(self, ids: list[int]) -> list[int]:
        return ids if self.end is None else [*ids, self.end]


class _NeedsRows(Exception):
    """A conversation whose answers cannot be tokenised with what stands before them."""


def answers_of(row: Row) -> tuple[Row, ...]:
    """Return a preference's two answers, each with the prompt before it; another row as it is."""
    if not isinstance(row, PreferenceRow):
        return (row,)
    return tuple(
        CompletionRow(row.prompt, answer, (), row.origin) for answer in (row.chosen, row.rejected)
    )


def _is_chat(group: tuple[Row, ...]) -> bool:
    return any(
        isinstance(row, ChatRow)
        or (isinstance(row, CompletionRow) and not isinstance(row.prompt, str))
        for row in group
    )


def _count(drafts: Sequence[_Draft], facts: Counter[str]) -> None:
    """Count what a person should know of a group's rows."""
    if len(drafts) > 1 and drafts[0].row.turns != drafts[1].row.turns:
        facts["conversations with a row for each turn, as the model is asked"] += 1
    for draft in drafts:
        if draft.row.foreign:
            facts["rows with special tokens in a message, which stay text"] += 1
        facts.update(draft.row.notes)


def _at(origin: str, what: str) -> str:
    return f"{origin}: {what}" if origin else what


def _located(fault: TurnFault | ValueError, origin: str) -> RowFault:
    if isinstance(fault, TurnFault):
        return RowFault("E108", _at(origin, fault.what), fault.fix)
    return RowFault("E108", _at(origin, str(fault)), "change the text, or use another tokenizer")


def _refused(fault: RowFault) -> DataError:
    return DataError(fault.code, fault.what, fix=fault.fix)


def _together(faults: Sequence[RowFault], rows: int) -> DataError:
    if rows == 1:
        return _refused(faults[0])
    shown = "; ".join(fault.what for fault in faults[:_SHOWN])
    more = f" ({len(faults)} in all so far)" if len(faults) > _SHOWN else ""
    fix = faults[0].fix or "mend the rows"
    return DataError(
        faults[0].code, f"{shown}{more}", fix=f"{fix}; or leave such rows out: on_bad_row: skip"
    )


def end_of_text(tokenizer: Any) -> int | None:
    """Return the id that ends a text: end-of-text, or BERT's separator, or None."""
    for token in (tokenizer.eos_token_id, tokenizer.sep_token_id):
        if token is not None:
            return int(token)
    return None
