"""Rows as token ids: what is read, what is trained on, and what happens to a row too long."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from llmft.api import (
    ChatRow,
    ClassificationRow,
    CompletionRow,
    Encoded,
    Message,
    PreferenceRow,
    Prompt,
    PromptRow,
    Row,
    TextRow,
    UnpairedRow,
)
from llmft.api.errors import DataError
from llmft.api.rows import IGNORED
from llmft.api.train_settings import TrainSettings
from llmft.data.bounded_tokens import BoundedTokens
from llmft.data.cache import through_cache
from llmft.data.chat_encoding import (
    ChatEncoder,
    Draft,
    RowFault,
    at,
    is_chat,
    naming_row,
    one_go,
    texts_of,
)
from llmft.data.chat_format import PLAIN, ChatFormat
from llmft.data.cutting import Part, Pieces
from llmft.data.encoding_report import EncodingReport
from llmft.data.long_texts import WINDOW, Located, ids_in_windows
from llmft.data.shortening import Shortener

_CHUNK = 512
_SHOWN = 3
_SPARE = 64  # tokens that a text which is cut by its characters keeps beyond its limit
_KEPT = 8192  # tokens of a row that are looked at to see whether it can be written
_CACHED = 2**24  # characters of texts that are cut; the tokens of more are not kept between runs
_MARK = re.compile(r"<\|\w+\|>")
"""What control tokens look like in most families."""


class Encoder:
    """Turns rows into token ids with one tokenizer, one chat template and one maximal length.

    All of a stage's rows go this way: `encode` for rows that are one sequence, `encode_pairs` and
    `encode_prompts` (in their own modules) for preferences and prompts. Each of them is
    `token_rows` or `prompt_ids`, which cut nothing, followed by what is done with a row too long.
    Who wants to see what a row becomes asks for `token_rows([(row,)], ...)`, then `fitted`.
    """

    def __init__(self, tokenizer: Any, max_length: int | None, chat: ChatFormat = PLAIN) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.chat = chat
        self.end = end_of_text(tokenizer)
        self.shorten = Shortener(tokenizer)
        self._tokens = BoundedTokens(tokenizer)
        self._chat = ChatEncoder(tokenizer, chat, self.end)

    def encode(
        self,
        rows: Sequence[Row],
        settings: TrainSettings,
        *,
        refuse: bool = True,
        wrap: bool = False,
    ) -> tuple[Sequence[Encoded], EncodingReport]:
        """Return the rows that can be learnt from, and the count of those cut or dropped.

        refuse: False to look at rows of which too many are lost. wrap: texts fill chunks, see
        `Pieces`. A conversation may become several rows, and so may a text that is cut.
        Raises DataError where a row cannot be written by the chat template as it is asked
        (E108), where `on_long_row` is 'fail' and a row is too long (E106), where a larger share
        than `max_dropped` is lost (E104), and where nothing is left to learn (E105).
        """
        report = EncodingReport()
        if settings.on_long_row == "split" and self.max_length:
            joined = settings.cross_document_attention
            pieces = self._pieces(rows, report, self.max_length, wrap=wrap, joined=joined)
            if refuse:
                report.refuse_losses(settings)
            return pieces, report
        kept: list[Encoded] = []
        most = None if settings.on_long_row == "fail" else self.max_length
        for made in self.token_rows([(row,) for row in rows], "rows", report.remarks, most):
            for encoded in made:
                report.rows += 1
                whole = self.fitted(encoded, settings.on_long_row, report)
                if whole is not None:
                    kept.append(whole)
        report.kept = len(kept)
        if refuse:
            report.refuse_losses(settings)
        return kept, report

    def _pieces(
        self, rows: Sequence[Row], report: EncodingReport, limit: int, *, wrap: bool, joined: bool
    ) -> Pieces:
        """Return plain texts as rows of at most `limit` tokens."""
        other = next((row for row in rows if not isinstance(row, TextRow)), None)
        if other is not None:
            raise DataError(
                "E101",
                f"{other.origin}: on_long_row: split cuts plain text, and this is a"
                f" {type(other).__name__}",
                fix="write truncate, drop or fail",
            )
        texts = [row for row in rows if isinstance(row, TextRow)]
        made = Pieces(self._parts(texts, report.remarks), limit, wrap=wrap, joined=joined)
        report.remarks.update(made.remarks)
        for origin in made.dropped:
            report.count("dropped, no trained-on token", origin)
        report.kept = len(made)
        report.rows = report.kept + len(made.dropped)
        return made

    def _parts(self, rows: Sequence[TextRow], remarks: Counter[str]) -> Iterator[Part]:
        """Yield the tokens of texts, of a long one a window at a time."""
        sizes = [len(row.text) for row in rows]
        if sum(sizes) <= _CACHED and max(sizes, default=0) < 2 * WINDOW:
            groups = self.token_rows([(row,) for row in rows], "rows", remarks)
            yield from ((one.input_ids, one.origin, True) for made in groups for one in made)
            return
        chunk: list[tuple[Row, ...]] = []
        size = 0
        for row in rows:
            long = len(row.text) >= 2 * WINDOW and self.tokenizer.is_fast
            size += len(row.text)
            if chunk and (long or size > _CACHED // 16):
                yield from self._whole(chunk, remarks)
                chunk, size = [], len(row.text)
            if long:
                yield from self._in_windows(row, remarks)
                size = 0
            else:
                chunk.append((row,))
        yield from self._whole(chunk, remarks)

    def _whole(self, groups: Sequence[tuple[Row, ...]], remarks: Counter[str]) -> Iterator[Part]:
        for made in self._made(groups, remarks, None):
            yield from ((one.input_ids, one.origin, True) for one in made)

    def _in_windows(self, row: TextRow, remarks: Counter[str]) -> Iterator[Part]:
        try:
            self._check_words((row,), remarks)
        except RowFault as fault:
            raise fault.refused() from fault
        plain = row.special_tokens != "parse"

        def read(texts: Sequence[str]) -> Sequence[Located]:
            return self._tokens.all_located(
                texts,
                offsets=True,
                add_special_tokens=False,
                split_special_tokens=plain,
                truncation=False,
                verbose=False,
            )

        with naming_row(row.origin):
            ((whole,), ((alone, _),)) = self._read(["x"], plain=plain), read(["x"])
            begins = whole[: len(whole) - len(alone)]
            for ids in ids_in_windows(row.text, read):
                if begins:
                    repeated = not plain and ids[:1] == begins == [self.tokenizer.bos_token_id]
                    yield [] if repeated else begins, row.origin, False
                    begins = []
                yield ids, row.origin, False
        yield [] if self.end is None else [self.end], row.origin, True

    def token_rows(
        self,
        groups: Sequence[tuple[Row, ...]],
        kind: str,
        remarks: Counter[str],
        most: int | None = None,
    ) -> Iterator[Sequence[Encoded]]:
        """Yield the token rows of each group of rows, whole, however long.

        A group is a row, or a preference's `answers_of`. kind: a word for what is made of a group,
        for the cache. remarks: gets what a person should know. most: of a row with more tokens
        than that, not all are needed: of 'rows' the first ones, of others the prompt's last ones.
        Raises DataError at the first rows that cannot be written as they are asked.
        """
        whole, groups = groups, [self._shortened(group, most, kind) for group in groups]
        rows = [row for group in groups for row in group]
        key = f"{kind} {self.chat} {self._chat.stops}"
        facts: Counter[str] = Counter()
        made = through_cache(
            self.tokenizer, rows, len(groups), key, lambda: self._made(groups, facts, None), facts
        )
        for given, group, found in zip(whole, groups, made, strict=True):
            was_short = group is not given and most is not None
            if was_short and max((len(one.input_ids) for one in found), default=0) <= (most or 0):
                (found,) = self._made([given], Counter(), None)  # the cut took too much
            yield found
        remarks.update(facts)

    def _shortened(self, group: tuple[Row, ...], most: int | None, kind: str) -> tuple[Row, ...]:
        made = tuple(self.shorten.row(row, most, end=kind != "rows") for row in group)
        same = all(one is other for one, other in zip(made, group, strict=True))
        return group if same else made

    def refusals(self, rows: Sequence[Row]) -> dict[int, str]:
        """Return the rows that cannot be written as they are asked, by number, each with why."""
        groups = {
            n: group
            for n, row in enumerate(rows)
            if is_chat(group := answers_of(row)) or isinstance(row, TextRow)
        }
        most = self.max_length or _KEPT
        groups = {n: self._shortened(group, most, "rows") for n, group in groups.items()}
        refused: dict[int, str] = {}
        for _ in self._made(list(groups.values()), Counter(), refused):
            pass
        found = {n: refused[i] for i, n in enumerate(groups) if i in refused}
        for number, row in enumerate(rows):
            if isinstance(row, PromptRow) and not isinstance(row.prompt, str):
                try:
                    self._chat.prompt_ids(row.prompt, row.origin)
                except RowFault as fault:
                    found[number] = fault.what
        return found

    def lengths(self, rows: Sequence[Row], most: int) -> list[int]:
        """Return how many tokens each row has, whole; of a row with two answers, the longer one.

        most: of a row with more tokens, some number above it is given.

        A conversation that becomes several rows is as long as the longest of them. Raises DataError
        at a row that cannot be written as it is asked.
        """
        groups = [answers_of(row) for row in rows if not isinstance(row, PromptRow)]
        kind = "pairs" if groups and len(groups[0]) > 1 else "rows"
        made = self.token_rows(groups, kind, Counter(), most)
        if any(isinstance(row, ClassificationRow) for row in rows):
            return [len(self.class_ids(row)) for row in rows if isinstance(row, ClassificationRow)]
        return [
            len(self.prompt_ids(self.shorten.prompt(row.prompt, most), row.origin))
            if isinstance(row, PromptRow)
            else max((len(one.input_ids) for one in next(made)), default=0)
            for row in rows
        ]

    def prompt_ids(self, prompt: Prompt, origin: str = "") -> list[int]:
        """Return the ids of a prompt that is to be answered, as serving sends them."""
        if isinstance(prompt, str):
            with naming_row(origin):
                return self._ids([prompt])[0]
        try:
            return self._chat.prompt_ids(prompt, origin)
        except RowFault as fault:
            raise fault.refused() from fault

    def class_ids(self, row: ClassificationRow, limit: int | None = None) -> list[int]:
        """Return the ids of what is classified; special tokens that a text spells stay text.

        Those of a text are the tokenizer's own, with its special tokens and nothing after them, as
        transformers' classifiers take it; limit: it is truncated to so many, as tokenizers do. A
        conversation is whole, whatever the limit. Raises DataError at one that cannot be written.
        """
        if not isinstance(row.prompt, str):
            ((whole,),) = self._made([answers_of(row)], Counter(), None)
            return list(whole.input_ids)
        cut: dict[str, Any] = {"truncation": False}
        text, pair = row.prompt, {} if row.text_pair is None else {"text_pair": row.text_pair}
        if limit is not None:
            cut = {"truncation": "longest_first", "max_length": limit}
            text = self._beginning(text, limit, row.origin)
            pair = {key: self._beginning(one, limit, row.origin) for key, one in pair.items()}
        with naming_row(row.origin):
            return self._tokens.ids(
                text, **pair, add_special_tokens=True, split_special_tokens=True,
                verbose=False, **cut,
            )  # fmt: skip

    def _beginning(self, text: str, limit: int, origin: str) -> str:
        """Return a text's beginning, which has more than `limit` tokens still, or all of it.

        Fast tokenizers make pieces of all that they cut off, of two texts each with each.
        """
        if not self.tokenizer.is_fast or len(text) <= limit:
            return text
        with naming_row(origin):
            _, starts = self._tokens.located(
                text, offsets=True, add_special_tokens=False, split_special_tokens=True,
                truncation=False, verbose=False,
            )  # fmt: skip
        # The last word may be cut in two and have other tokens: these are beyond the limit.
        keep = limit + _SPARE
        return text[: starts[keep]] if len(starts) > keep else text

    def spells_special(self, row: ClassificationRow) -> bool:
        """Return whether a text to classify spells a special token, which stays text."""
        texts = (row.prompt, row.text_pair or "") if isinstance(row.prompt, str) else ()
        return bool(self._spelled(texts))

    def render(self, messages: Iterable[Message], *, answer_next: bool) -> str:
        """Return a conversation as the model's chat template writes it."""
        given = messages if isinstance(messages, tuple) else tuple(messages)
        try:
            return self._chat.render(given, answer_next=answer_next)
        except RowFault as fault:
            raise fault.refused() from fault

    def completion(self, row: CompletionRow) -> Encoded:
        """Return a prompt with its completion as ids, whole, however long."""
        ((encoded,),) = self._made([(row,)], Counter(), None)
        return encoded

    @property
    def reads_clock(self) -> bool:
        """Whether a chat template has asked what day it is: it is told the recipe's."""
        return self._chat.reads_clock

    def fitted(self, row: Encoded, rule: str, report: EncodingReport) -> Encoded | None:
        """Return a token row as it is trained on, cut where it has to be; None: it is dropped.

        rule: the stage's `on_long_row`. report: counts what is cut or dropped, and why.
        """
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
            drafts: dict[int, list[Draft]] = {}
            faults: dict[int, RowFault] = {}
            texts = [n for n in chunk if not is_chat(groups[n])]
            for number in texts:
                try:
                    self._check_words(groups[number], facts)
                except RowFault as fault:
                    faults[number] = fault
            fine = [n for n in texts if n not in faults]
            made = dict(zip(fine, self._texts([groups[n] for n in fine]), strict=True))
            for number in sorted(set(chunk) - set(texts)):
                try:
                    drafts[number] = self._chat.drafts(groups[number])
                except RowFault as fault:
                    faults[number] = fault
            every = [one for group in drafts.values() for one in group]
            places = iter(self._chat.places(every))
            for number, group in drafts.items():
                of_group = [next(places) for _ in group]
                try:
                    made[number] = self._chat.token_rows(groups[number], group, of_group, facts)
                except RowFault as fault:
                    faults[number] = fault
            if faults and refused is None:
                raise _together([faults[n] for n in sorted(faults)], len(groups))
            if refused is not None:
                refused.update({n: fault.what for n, fault in faults.items()})
            yield from (made.get(n, []) for n in chunk)

    def _check_words(self, group: tuple[Row, ...], facts: Counter[str]) -> None:
        """Count texts that spell control tokens; RowFault where nobody said what they are."""
        for row in group:
            parsed = isinstance(row, TextRow) and row.special_tokens == "parse"
            found = {match for text in texts_of(row) for match in _MARK.findall(text)}
            for word in sorted(found - self._chat.control):
                facts[
                    f"texts with {word!r}, which is no token of this tokenizer and is read as"
                    " letters"
                ] += 1
            spelled = self._spelled(texts_of(row))
            if not spelled or parsed:
                continue
            if isinstance(row, TextRow) and row.special_tokens is None:
                raise RowFault(
                    "E101",
                    at(row.origin, f"the text spells the special token {spelled!r}"),
                    "write data.special_tokens: parse to read such words as tokens, or text to"
                    " keep them as letters",
                )
            facts["rows with special tokens in their text, which stay text"] += 1

    def _spelled(self, texts: Iterable[str]) -> str:
        found = (self._chat.stops.spelled(text) for text in texts)
        return next((word for word in found if word), "")

    def _texts(self, groups: Sequence[tuple[Row, ...]]) -> list[list[Encoded]]:
        """Return the token rows of groups whose rows are plain text."""
        wholes: list[tuple[str, str]] = []
        parsed: list[tuple[str, str]] = []
        prompts: list[tuple[str, str]] = []
        for row in (row for group in groups for row in group):
            if isinstance(row, TextRow):
                ways = parsed if row.special_tokens == "parse" else wholes
                ways.append((row.text, row.origin))
            elif isinstance(row, CompletionRow):
                assert isinstance(row.prompt, str)
                if self.end is None:
                    raise DataError(
                        "E108",
                        "the tokenizer has no end-of-text token, so nothing would end an answer",
                        fix="name its eos_token in tokenizer_config.json, or take the tokenizer of"
                        " another model: model.tokenizer",
                    )
                prompts.append((row.prompt, row.origin))
                wholes.append((row.prompt + row.completion, row.origin))
            elif isinstance(row, PromptRow):
                raise DataError("E105", f"{row.origin}: a prompt alone has no tokens to train on")
            else:
                raise DataError("E105", f"{row.origin}: a {type(row).__name__} is not one sequence")
        whole_ids = iter(one_go(self._ids, wholes))
        parsed_ids = iter(one_go(self._parsed_ids, parsed))
        prompt_ids = iter(one_go(self._ids, prompts))
        made = []
        for group in groups:
            of_group = []
            for row in group:
                by_words = isinstance(row, TextRow) and row.special_tokens == "parse"
                ids = next(parsed_ids if by_words else whole_ids)
                if isinstance(row, CompletionRow):
                    prompt = next(prompt_ids)
                    alone = self._chat.chat.tokenize_apart
                    if alone or ids[: len(prompt)] != prompt:  # as when the prompt is answered
                        with naming_row(row.origin):
                            after = self._chat.reader.after(row.completion, alone=alone)
                            ids = prompt + after
                else:
                    prompt = []
                ids = self._with_end(ids)
                labels = [IGNORED] * len(prompt) + ids[len(prompt) :]
                of_group.append(Encoded(tuple(ids), tuple(labels), row.origin))
            made.append(of_group)
        return made

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Return texts' ids; words like '</s>' in the user's text stay plain text."""
        return self._read(texts, plain=True)

    def _parsed_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of texts that spell special tokens; one that begins a text is there once.

        Beside the text's own, the tokenizer puts its first token before the text.
        """
        begins = self.tokenizer.bos_token_id
        found = self._read(texts, plain=False)
        return [ids[1:] if begins is not None and ids[:2] == [begins] * 2 else ids for ids in found]

    def _read(self, texts: Sequence[str], *, plain: bool) -> list[list[int]]:
        found = self._tokens.all_located(
            texts,
            add_special_tokens=True,
            split_special_tokens=plain,
            truncation=False,
            verbose=False,
        )
        # Some tokenizers close every text; a prompt is not closed.
        return [ids[:-1] if len(ids) > 1 and ids[-1] == self.end else ids for ids, _ in found]

    def _with_end(self, ids: list[int]) -> list[int]:
        return ids if self.end is None else [*ids, self.end]


def answers_of(row: Row) -> tuple[Row, ...]:
    """Return a row's labelled answers, each with the prompt before it; another row as it is.

    A conversation that is classified is one whose every token is written.
    """
    if isinstance(row, UnpairedRow):
        return (CompletionRow(row.prompt, row.completion, row.answers, row.origin),)
    if isinstance(row, ClassificationRow) and not isinstance(row.prompt, str):
        return (ChatRow(row.prompt, row.origin, "every_token"),)
    if not isinstance(row, PreferenceRow):
        return (row,)
    return tuple(
        CompletionRow(row.prompt, answer, (), row.origin) for answer in (row.chosen, row.rejected)
    )


def end_of_text(tokenizer: Any) -> int | None:
    """Return the id that ends a text: end-of-text, or BERT's separator, or None."""
    for token in (tokenizer.eos_token_id, tokenizer.sep_token_id):
        if token is not None:
            return int(token)
    return None


def _together(faults: Sequence[RowFault], rows: int) -> DataError:
    if rows == 1:
        return faults[0].refused()
    shown = "; ".join(fault.what for fault in faults[:_SHOWN])
    more = f" ({len(faults)} in all so far)" if len(faults) > _SHOWN else ""
    fix = faults[0].fix or "correct the rows"
    return DataError(
        faults[0].code, f"{shown}{more}", fix=f"{fix}; or leave such rows out: on_bad_row: skip"
    )
