"""Preferences: a prompt, a better answer and a worse one, in the forms that people keep."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal

from pydantic import model_validator

from llmft.api import (
    DataError,
    Field,
    LeftOutRow,
    Line,
    Message,
    PreferenceRow,
    Prompt,
    Row,
    Settings,
    Share,
    hookimpl,
)
from llmft.toolkit import (
    TableConfig,
    TableDataset,
    answers_of,
    asked_as,
    messages_in,
    messages_of,
    text_of,
    with_tools,
    without_prompt,
)
from llmft_datasets.preference import forms
from llmft_datasets.preference.examples import example_records
from llmft_datasets.short_answers import METRICS


class Columns(Settings):
    """Which column, or which template of {columns}, gives what."""

    prompt: Line | None = Field(
        None,
        description="a column or template; default: 'prompt' where there is one; else the beginning"
        " that two conversations, or two texts in Anthropic's HH format, have in common",
    )
    chosen: Line = Field("chosen", description="the better answer: a column or template")
    rejected: Line = Field("rejected", description="the worse answer: a column or template")
    margin: Line | None = Field(
        None, description="a column: by how much the chosen answer is better"
    )
    chosen_score: Line | None = Field(None, description="a column: the better answer's score")
    rejected_score: Line | None = Field(None, description="a column: the worse answer's score")
    answers: Line | None = Field(None, description="a column with the list of right answers")
    candidates: Line | None = Field(
        None, description="a column with a list of answers, in place of chosen and rejected"
    )
    scores: Line | None = Field(None, description="the candidates' scores; higher is better")
    ranks: Line | None = Field(None, description="the candidates' ranks; lower is better")

    @model_validator(mode="after")
    def _belong_together(self) -> Columns:
        if (self.candidates is None) != (self.scores is None and self.ranks is None):
            raise ValueError("candidates come with either scores or ranks")
        if self.scores and self.ranks:
            raise ValueError("scores and ranks exclude each other; keep one")
        if (self.chosen_score is None) != (self.rejected_score is None):
            raise ValueError("chosen_score and rejected_score belong together")
        return self


class Preference(TableDataset["Preference.Config"]):
    """Preferences: prompt, chosen and rejected; whole conversations or texts; ranked answers.

    Pairs of equal rank or score, and pairs whose answers are the same, are left out and counted.
    """

    method = "preference"
    rows = ("preference",)
    metrics = METRICS

    class Config(TableConfig):
        """Where the preferences are, and what their columns mean."""

        max_bad_rows: Share = Field(
            0.05, description="stop if more than this share of the rows is skipped"
        )
        columns: Columns = Field(default_factory=Columns, description="which columns hold what")
        chat: bool = Field(
            False,
            description="format text prompts as a user message, with the model's chat template",
        )
        common_start: bool = Field(
            False,
            description="take the common beginning of two texts as their prompt, where no column"
            " holds it",
        )
        strip_answers: bool = Field(
            True,
            description="of chat: leave out the spaces at an answer's start and end, for a chat"
            " template sets its own",
        )
        repeated_prompt: Literal["strip", "keep"] | None = Field(
            None,
            description="what is done with answers that both begin with the prompt: take the prompt"
            " off, or keep it; default: refuse such a row",
        )

    def records(self, split: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        columns = self.config.columns
        for origin, record in super().records(split):
            pairs: Sequence[tuple[str, Mapping[str, Any]]] = [(origin, record)]
            if columns.candidates is not None:
                with suppress(DataError):  # a record that cannot be read: `row` says so
                    numbers = columns.scores, columns.ranks
                    pairs = list(forms.ranked_pairs(record, origin, columns.candidates, *numbers))
            yield from pairs

    def row(self, record: Mapping[str, Any], origin: str) -> Row:
        columns = self.config.columns
        is_pair = forms.TIE in record and columns.candidates not in record
        if columns.candidates and not is_pair:
            numbers = columns.scores or columns.ranks or ""
            fault = forms.ranking_fault(record, columns.candidates, numbers)
            raise DataError("E101", f"{origin}: {fault or 'the candidates are not in pairs'}")
        prompt, chosen, rejected = self._parts(record, origin)
        for name, text in ((columns.chosen, chosen), (columns.rejected, rejected)):
            if not text.strip():
                raise DataError("E101", f"{origin}: the answer in '{name}' is empty")
        if not prompt:
            raise DataError("E101", f"{origin}: the prompt is empty")
        margin = self._margin(record, origin)
        if record.get(forms.TIE) is True or margin == 0:
            raise LeftOutRow(origin, "ties")
        if chosen.strip() == rejected.strip():
            raise LeftOutRow(origin, "pairs of the same answer twice")
        return PreferenceRow(
            prompt, chosen, rejected, margin, origin, answers_of(record, columns.answers, origin)
        )

    def example_records(self) -> Sequence[Mapping[str, Any]]:
        return example_records(self.config.columns)

    def ask(self, question: str) -> Prompt:
        return self._asked(asked_as(self.config.columns.prompt or "prompt", question))

    def _asked(self, text: str) -> Prompt:
        return (Message(role="user", content=text),) if self.config.chat else text

    def _parts(self, record: Mapping[str, Any], origin: str) -> forms.Parts:
        columns = self.config.columns
        ranked = columns.candidates is not None
        chosen = forms.CHOSEN if ranked else columns.chosen
        rejected = forms.REJECTED if ranked else columns.rejected
        prompt = columns.prompt or ("prompt" if _peeked(record, "prompt") is not None else None)
        answers = [_answer_in(record.get(column), origin) for column in (chosen, rejected)]
        if any(answer is not None for answer in answers):
            before = _peeked(record, prompt) if prompt else None
            parts, is_read = forms.split_conversations(before, answers[0], answers[1], origin)
            if prompt and is_read:
                record.get(prompt)
            turns, better, worse = parts
            assert not isinstance(turns, str)
            return with_tools(turns, record, origin), better, worse
        better, worse = text_of(record, chosen, origin), text_of(record, rejected, origin)
        if prompt is None:
            others = [name for name in record if name not in (chosen, rejected)]
            guess = self.config.common_start
            text, better, worse = forms.split_texts(
                better, worse, origin, guess=guess, others=others
            )
        elif (spoken := messages_in(record.get(prompt), origin)) is not None:
            return with_tools(messages_of(spoken, origin), record, origin), better, worse
        else:
            text = text_of(record, prompt, origin)
            rule = self.config.repeated_prompt
            better, worse = without_prompt(text, [better, worse], rule, origin)
        if not self.config.chat or not isinstance(text, str):
            return text, better, worse
        is_hh = text.endswith(forms.ASSISTANT) and forms.HUMAN in f"\n\n{text.lstrip()}"
        turns = forms.hh_messages(text, origin) if is_hh else self._asked(text)
        if not self.config.strip_answers:
            return turns, better, worse
        return turns, better.strip(), worse.strip()

    def _margin(self, record: Mapping[str, Any], origin: str) -> float | None:
        columns = self.config.columns
        if columns.chosen_score and columns.rejected_score:
            margin = forms.number_of(record, columns.chosen_score, origin) - forms.number_of(
                record, columns.rejected_score, origin
            )
        elif columns.margin:
            margin = forms.number_of(record, columns.margin, origin)
        elif columns.candidates and forms.MARGIN in record:
            margin = forms.number_of(record, forms.MARGIN, origin)
        else:
            return None
        if margin < 0:
            raise DataError("E101", f"{origin}: the rejected answer is better, by {-margin:g}")
        return margin


def _answer_in(value: Any, origin: str) -> list[Any] | None:
    """Return the messages of an answer's column, of which it may hold one by itself."""
    return messages_in([value] if isinstance(value, Mapping) else value, origin)


def _peeked(record: Mapping[str, Any], column: str) -> Any:
    """Return a record's value without reading it: a prompt that goes unused is to be named so."""
    return dict.get(record, column) if isinstance(record, dict) else record.get(column)


@hookimpl
def llmft_datasets() -> list[type[Preference]]:
    return [Preference]
