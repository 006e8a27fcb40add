"""Which characters of a rendered conversation are trained on: found by construction, and checked.

For the assistant's turn k, P is the rendering of the messages before it with a generation prompt,
and W the rendering that ends with it. W begins with P, so the answer begins where P ends; it ends
with the first of the stop tokens after which W holds nothing but blanks and ends. Where the answers
of all turns stand in one rendering as they do in their own, one row holds them all; elsewhere each
turn is a row of its own, as the model is served.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from llmft.data.rendering import ChatTemplate, Part, TemplateRefusal, TracedText
from llmft.data.stops import Stops, any_of

_SHOWN = 60
_TRIED: tuple[dict[str, Any], ...] = (
    {"enable_thinking": False}, {"thinking": False}, {"enable_thinking": True}, {"thinking": True},
)  # fmt: skip


class TurnFault(Exception):
    """A conversation, or one turn, that cannot be trained on; the fix may be empty.

    kind: 'refused', 'unread', 'prompt', 'lost', 'stop', 'control', 'empty' or 'whole'.
    """

    def __init__(self, kind: str, what: str, fix: str = "") -> None:
        super().__init__(what)
        self.kind, self.what, self.fix = kind, what, fix


@dataclass(frozen=True, slots=True)
class TurnRow:
    """A rendering with what is trained on in it.

    spans: (start, stop) of characters, in order; an answer begins where its prompt ends. turns: the
    messages that the spans are. foreign: characters that come from the messages although they
    spell a control token. notes: what a person should know. unended: the turns of those whose
    answers end with no token at which generation stops.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    turns: tuple[int, ...]
    foreign: tuple[tuple[int, int], ...] = ()
    notes: tuple[str, ...] = ()
    unended: tuple[int, ...] = ()

    def plain(self) -> tuple[Any, ...]:
        """Return the fields, in order, as plain data."""
        notes = tuple(str.__str__(note) for note in self.notes)
        return str.__str__(self.text), self.spans, self.turns, self.foreign, notes, self.unended


@dataclass(frozen=True, slots=True)
class _Turn:
    start: int
    end: int
    text: str  # W up to the end
    unended: str | None = None  # what ends it, where that is no stop


class TurnFinder:
    """The messages of a row under a template, from which rows to train on are made.

    lost: 'refuse' a text that the template leaves out, or 'note' it. missing_stop: the same for an
    answer that the template ends with no token at which generation stops. learn_template: as in
    ModelSource: 'stop', 'turn', 'none' or 'eos'.
    """

    def __init__(
        self,
        template: ChatTemplate,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Any] | None,
        stops: Stops,
        *,
        names: Mapping[str, Any] | None = None,
        lost: str = "refuse",
        missing_stop: str = "refuse",
        learn_template: str = "stop",
    ) -> None:
        self.template, self.messages, self.tools = template, messages, tools or None
        self.stops, self.names = stops, names
        self.lost, self.missing_stop, self.learn_template = lost, missing_stop, learn_template
        self._turns: dict[int, _Turn | TurnFault] = {}
        self._traces: dict[int, TracedText] = {}

    def whole(self, turns: Sequence[int]) -> TurnRow:
        """Return one row that holds all of some assistant turns; TurnFault where none can."""
        last = turns[-1]
        found = [self._turn(turn) for turn in turns]
        text = found[-1].text
        for turn, one in zip(turns, found, strict=True):
            if not text.startswith(one.text):
                raise TurnFault(
                    "whole",
                    f"the chat template writes turn {turn} in another way once others follow",
                    "write data.turns: rows, for a row of each turn",
                )
        notes = (*self._check(last, turns), *self._unended_notes(found))
        spans = tuple((one.start, one.end) for one in found)
        unended = self._unended_of(turns)
        return TurnRow(text, spans, tuple(turns), self._foreign(last, text), notes, unended)

    def rows(self, turns: Sequence[int]) -> list[TurnRow]:
        """Return a row for each of some assistant turns, with the turns before it as served."""
        return [self.whole((turn,)) for turn in turns]

    def every_token(self) -> TurnRow:
        """Return the whole rendering, all of which is trained on."""
        last = len(self.messages) - 1
        text = self.render(len(self.messages), answer_next=False)
        notes = self._check(last, range(len(self.messages)))
        return TurnRow(text, ((0, len(text)),), (), self._foreign(last, text), notes)

    def roles(self, learnt: Sequence[int]) -> TurnRow:
        """Return one row in which turns of any roles are trained on, each with its stop.

        The spans of the assistant's turns are as in `whole`.
        """
        turns = [turn for turn in learnt if self.messages[turn]["role"] == "assistant"]
        last = len(self.messages) - 1
        text = self.render(len(self.messages), answer_next=False)
        spans = {}
        for turn in turns:
            one = self._turn(turn)
            if not text.startswith(one.text):
                raise TurnFault(
                    "whole",
                    f"the chat template writes turn {turn} in another way once others follow",
                    "learn the assistant's turns only (data.learn: all)",
                )
            spans[turn] = (one.start, one.end)
        ranges = self._traced(last).ranges()
        for turn in learnt:
            own = [r for r in ranges if r[2].message == turn]
            if turn in turns or not own:
                continue
            stop = max(r[1] for r in own)
            closing = any_of(self._learnt_ends)
            after = closing.match(text, stop) if closing else None
            spans[turn] = (min(r[0] for r in own), after.end() if after else stop)
        if not spans:
            raise TurnFault("empty", "the turns to train on hold no text")
        answers = [self._turn(turn) for turn in turns]
        notes = (*self._check(last, turns), *self._unended_notes(answers))
        order = sorted(spans, key=lambda turn: spans[turn])
        end = max(stop for _, stop in spans.values())
        foreign = self._foreign(last, text[:end])
        return TurnRow(text[:end], tuple(spans[turn] for turn in order), tuple(order),
                       foreign, notes, self._unended_of(turns))  # fmt: skip

    def prompt(self) -> TurnRow:
        """Return the rendering that asks for the next answer, of which nothing is trained on."""
        text = self.render(len(self.messages), answer_next=True)
        traced = self.template.trace(self.messages, self.tools, names=self.names, answer_next=True)
        self._equal(traced.text, text)
        notes = self._checked(traced, ())
        return TurnRow(text, (), (), self._foreign_in(traced, text) if self._spelled else (), notes)

    def _turn(self, turn: int) -> _Turn:
        found = self._turns.get(turn)
        if found is None:
            try:
                found = self._bare(turn, self._found(turn))
            except TurnFault as fault:
                found = fault
            self._turns[turn] = found
        if isinstance(found, TurnFault):
            raise found
        return found

    def _found(self, turn: int) -> _Turn:
        asked = self.render(turn, answer_next=True)
        text = self.render(turn + 1, answer_next=False)
        composed = None
        if not text.startswith(asked):
            composed = self._after_a_tool(turn, asked)
            if composed is None:
                raise self._otherwise(turn, asked, text)
            text = composed
        known = self._without_foreign(turn, text)
        end = self.stops.end_of(known, len(asked))
        if end is not None:
            end = len(text) if self.learn_template == "turn" else end
            return _Turn(len(asked), end, text[:end])
        if followed := self.stops.followed(known, len(asked)):
            raise TurnFault("stop", *followed)
        is_ended = self.stops.appended or self.stops.ends_rows
        if composed or (self.missing_stop == "refuse" and not is_ended):
            raise TurnFault("stop", *self._unended(turn, text[len(asked) :]))
        end, closing = self._last_of(turn, asked, text)
        if self.stops.appended:
            text = text[:end] + self.stops.appended
            return _Turn(len(asked), len(text), text)
        end = len(text) if self.learn_template == "turn" else end
        return _Turn(len(asked), end, text[:end], closing)

    def _bare(self, turn: int, found: _Turn) -> _Turn:
        """Return a turn of which only the answer's own text is learnt, and with `eos` its end."""
        if self.learn_template not in ("none", "eos"):
            return found
        own = [(start, stop) for start, stop, part in self._traced(turn).ranges()
               if part.message == turn and found.start <= start < stop]  # fmt: skip
        said = {part.name for _, _, part in self._traced(turn).ranges() if part.message == turn}
        if more := sorted(name for name in said if name != "content"):
            raise TurnFault(
                "stop",
                f"turn {turn}: it has {', '.join(more)}, and model.learn_template:"
                f" {self.learn_template} says of text only what is trained on",
                "write model.learn_template: stop",
            )
        if not own:
            raise TurnFault(
                "empty",
                f"turn {turn}: the chat template writes no text of the answer after the prompt, and"
                f" no more is trained on (model.learn_template: {self.learn_template})",
                "leave the row out, or write model.learn_template: stop",
            )
        start, end = min(own)[0], max(stop for _, stop in own)
        text = self.render(turn + 1, answer_next=False)
        if not text.startswith(found.text[:start]):
            raise self._otherwise(turn, found.text[: found.start], text)
        ends = any_of(self._learnt_ends)
        later = ends.search(text, end) if ends else None
        if later and text[end : later.start()]:
            raise TurnFault(
                "stop",
                f"turn {turn}: between the answer and {later.group()!r} the chat template writes"
                f" {text[end : later.start()]!r}, which model.learn_template: eos does not learn",
                "write model.learn_template: stop or none",
            )
        return _Turn(start, later.end() if later else end, text[: later.end() if later else end])

    def _last_of(self, turn: int, asked: str, text: str) -> tuple[int, str]:
        """Return where an answer without a stop ends, and what the template closes it with.

        It ends with the rendering, unless that may hold a generation prompt.
        """
        end = len(text.rstrip())
        own = [stop for _, stop, part in self._traced(turn).ranges() if part.message == turn]
        closing = text[max(own, default=end) : end].strip()
        heeds = asked != self.render(turn, answer_next=False)
        if end <= len(asked) or (closing and not heeds):
            raise TurnFault("stop", *self._unended(turn, text[len(asked) :]))
        return end, closing

    def _unended_of(self, turns: Sequence[int]) -> tuple[int, ...]:
        return tuple(turn for turn in turns if self._turn(turn).unended is not None)

    def _unended_notes(self, turns: Sequence[_Turn]) -> tuple[str, ...]:
        turns = turns[:-1] if self.stops.ends_rows else turns
        known = ", ".join(repr(stop) for stop in self.stops.stops) or "none is known"
        # Before the last line may stand what is in the row, such as the end of a call's arguments.
        closings = sorted(
            {turn.unended.split("\n")[-1] for turn in turns if turn.unended is not None}
        )
        return tuple(
            (
                f"the chat template ends an answer with {closing!r}"
                if closing
                else "the chat template writes nothing after an answer"
            )
            + f", where generation does not stop (it stops at {known}), so the model does not learn"
            " to stop; write model.append_eos: true, or name a token that ends it as model.stop"
            for closing in closings
        )

    def _after_a_tool(self, turn: int, asked: str) -> str | None:
        """Return the prompt with the answer behind it, where the template rewrites a tool's turns.

        gpt-oss leaves the reasoning before a tool call out once the call is followed by an answer,
        and keeps it in the prompt for that answer. The answer's start is known by where text comes
        from: between a tool's answer and the turn, both renderings write the same.
        """
        if turn == 0 or self.messages[turn - 1]["role"] != "tool" or self._spelled:
            return None
        try:
            prompt = self.template.trace(
                self.messages[:turn], self.tools, names=self.names, answer_next=True
            )
            answered = self._traced(turn)
        except (TemplateRefusal, TurnFault):
            return None
        before = [stop for _, stop, part in prompt.ranges() if part.message == turn - 1]
        stops = [stop for _, stop, part in answered.ranges() if part.message == turn - 1]
        if prompt.text != asked or not before or not stops or prompt.ranges()[-1][1] != before[-1]:
            return None
        between, rest = asked[before[-1] :], answered.text[stops[-1] :]
        if not rest.startswith(between):
            return None
        return asked + str.__str__(rest[len(between) :])

    def render(self, count: int, *, answer_next: bool) -> str:
        """Return the first so many messages as the template writes them."""
        try:
            return self.template.render(
                self.messages[:count], self.tools, answer_next=answer_next, names=self.names
            )
        except TemplateRefusal as refusal:
            raise TurnFault(
                "refused",
                f"the chat template refuses the conversation: {refusal}",
                "change the conversation, or give another template as model.chat_template",
            ) from refusal

    def _traced(self, turn: int) -> TracedText:
        if turn not in self._traces:
            given = self.messages[: turn + 1]
            traced = self.template.trace(given, self.tools, names=self.names)
            self._equal(traced.text, self.render(turn + 1, answer_next=False))
            self._traces[turn] = traced
        return self._traces[turn]

    def _equal(self, traced: str, text: str) -> None:
        if traced != text:
            raise TurnFault(
                "lost",
                "the chat template does something with the messages that cannot be followed, so it"
                " cannot be told whether all of their text is in what is trained on",
                "give another template as model.chat_template",
            )

    def _check(self, last: int, turns: Sequence[int]) -> tuple[str, ...]:
        """Refuse, or note, text that is not in the rendering up to the message `last`.

        What a template leaves out of an earlier answer is what it leaves out at serving.
        """
        return self._checked(self._traced(last), turns)

    def _checked(self, traced: TracedText, turns: Sequence[int]) -> tuple[str, ...]:
        lost = traced.missing()
        if not lost:
            return ()
        known, printed = set(turns), traced.printed()
        said, notes = [], []
        for part, much in lost.items():
            role = "" if part.message < 0 else self.messages[part.message]["role"]
            if part.message < 0:
                if much == "all":
                    notes.append("the chat template writes nothing of the tools")
                continue
            if role == "assistant" and part.message not in known:
                continue
            said.append(_loss(part, role, much, part in printed))
        if not said:
            return tuple(sorted(set(notes)))
        if self.lost == "note":
            return tuple(sorted({*notes, *said}))
        raise TurnFault(
            "lost",
            "; ".join(said),
            "take it out of the rows, give a template that writes it as model.chat_template,"
            " or train without it: model.lost_text: note",
        )

    @property
    def _learnt_ends(self) -> tuple[str, ...]:
        """The tokens that are learnt right after a turn's text."""
        learnt = {"none": (), "eos": self.stops.named}
        return learnt.get(self.learn_template, self.stops.stops)

    @cached_property
    def _spelled(self) -> bool:
        return any(self.stops.spelled(text) for text in _texts((self.messages, self.tools)))

    def _without_foreign(self, turn: int, text: str) -> str:
        """Return a rendering in which control tokens that a message spells are blotted out."""
        if not self._spelled:
            return text
        letters = list(text)
        for start, stop, _ in self._traced(turn).ranges():
            letters[start:stop] = "x" * (stop - start)
        return "".join(letters)

    def _foreign(self, turn: int, text: str) -> tuple[tuple[int, int], ...]:
        return self._foreign_in(self._traced(turn), text) if self._spelled else ()

    def _foreign_in(self, traced: TracedText, text: str) -> tuple[tuple[int, int], ...]:
        """Return where control tokens are spelled by messages, and not written by the template."""
        pattern = any_of((*self.stops.control, *self.stops.stops, *self.stops.ends))
        if pattern is None:
            return ()
        own = bytearray(len(text))
        for start, stop, _ in traced.ranges():
            own[start:stop] = b"\1" * (min(stop, len(text)) - start)
        found = []
        for match in pattern.finditer(text):
            share = sum(own[match.start() : match.end()])
            if share == match.end() - match.start():
                found.append(match.span())
            elif share:
                raise TurnFault(
                    "control",
                    f"the text of a message and the chat template spell {match.group()!r} together",
                    "change the text",
                )
        return tuple(found)

    def _otherwise(self, turn: int, asked: str, text: str) -> TurnFault:
        """Return the fault that an answer does not stand where the generation prompt ends."""
        at = next((i for i, (a, b) in enumerate(zip(asked, text, strict=False)) if a != b),
                  min(len(asked), len(text)))  # fmt: skip
        fix = "give another template as model.chat_template"
        for names in _TRIED:
            if self._cured(turn, names):
                said = ", ".join(f"{key}: {str(value).lower()}" for key, value in names.items())
                fix = f"write model.chat_template_kwargs: {{{said}}}"
                break
        lost = ""
        with suppress(TurnFault, TemplateRefusal):
            for part in self._traced(turn).missing():
                role = "" if part.message < 0 else self.messages[part.message]["role"]
                if role not in ("", "assistant"):
                    lost = f"; once it is answered, {_loss(part, role, 'all', False)}"
                    break
        if lost:
            fix = "put that text into the first user turn, or give another template"
        return TurnFault(
            "prompt",
            f"turn {turn}: the chat template asks for an answer with"
            f" {_ended(asked[at : at + _SHOWN])} and writes the answered turn with"
            f" {_ended(text[at : at + _SHOWN])}, so what is asked is not what is trained on{lost}",
            fix,
        )

    def _cured(self, turn: int, names: Mapping[str, Any]) -> bool:
        given = {**(self.names or {}), **names}
        try:
            asked = self.template.render(
                self.messages[:turn], self.tools, answer_next=True, names=given
            )
            text = self.template.render(self.messages[: turn + 1], self.tools, names=given)
        except TemplateRefusal:
            return False
        return text.startswith(asked)

    def _unended(self, turn: int, answer: str) -> tuple[str, str]:
        known = ", ".join(repr(stop) for stop in self.stops.stops) or "none is known"
        return (
            f"turn {turn}: nothing ends the answer: the template closes it with"
            f" {answer[-_SHOWN:]!r}, which is none of the tokens at which generation"
            f" stops ({known})",
            "name the token that ends a turn as model.stop, have end-of-text put after each answer"
            " (model.append_eos: true), or give another template as model.chat_template",
        )


def _loss(part: Part, role: str, much: str, printed: bool) -> str:
    place = f"message {part.message} ({role})"
    if printed:
        return f"{place}: the chat template writes {part.name} as a list of Python"
    some = "" if much == "all" else "a part of "
    return f"{place}: the chat template leaves out {some}{part.name}"


def _ended(text: str) -> str:
    return repr(text) if text else "nothing"


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(key)
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
