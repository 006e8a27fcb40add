"""Closed-book questions with many right spellings, in TriviaQA's schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmft.api import (
    CompletionRow,
    DataError,
    Field,
    Line,
    Message,
    Prompt,
    Row,
    hookimpl,
)
from llmft.toolkit import TableConfig, TableDataset, fill
from llmft_datasets.short_answers import METRICS

_EXAMPLES = {
    "Which planet is nearest to the Sun?": ("Mercury", "planet Mercury"),
    "What is the chemical symbol of gold?": ("Au",),
    "Who wrote the play Hamlet?": ("William Shakespeare", "Shakespeare"),
    "How many legs does a spider have?": ("8", "eight"),
}


class TriviaQA(TableDataset["TriviaQA.Config"]):
    """Trivia questions, answered from memory, scored by exact match and F1 over all aliases.

    Reads the hub's mandarjoshi/trivia_qa (Joshi et al. 2017) and any file with its columns:
    `question` and `answer`, where the answer is TriviaQA's mapping (value, aliases) or a string
    beside a column `aliases`.
    """

    method = "triviaqa"
    rows = ("completion",)
    metrics = METRICS

    class Config(TableConfig):
        """Where the questions are, and how they are put to the model."""

        path: Line | None = Field(
            "mandarjoshi/trivia_qa", description="a file, a folder, a hub id, or 'embedded:trivia'"
        )
        subset: Line | None = Field("rc.nocontext", description="the hub data set's configuration")
        prompt_template: Line = Field(
            "Question: {question}\nAnswer:", description="the template of the prompt"
        )
        completion_template: Line = Field(
            " {answer}",
            description="the template of the completion; {answer} is the answer's value",
        )
        chat: bool = Field(
            False, description="format the prompt as a user message, with the model's chat template"
        )

    def row(self, record: Mapping[str, Any], origin: str) -> Row:
        value, aliases = _answer(record, origin)
        config = self.config
        prompt = self._prompt(fill(config.prompt_template, record, origin))
        completion = fill(config.completion_template, {**record, "answer": value}, origin)
        # A chat template sets its own space before an answer.
        completion = completion.strip() if config.chat else completion
        return CompletionRow(prompt, completion, tuple(dict.fromkeys((value, *aliases))), origin)

    def example_records(self) -> Sequence[Mapping[str, Any]]:
        return [
            {"question": question, "answer": {"value": right[0], "aliases": list(right)}}
            for question, right in _EXAMPLES.items()
        ]

    def ask(self, question: str) -> Prompt:
        return self._prompt(fill(self.config.prompt_template, {"question": question}, "question"))

    def _prompt(self, text: str) -> Prompt:
        return (Message(role="user", content=text),) if self.config.chat else text


def _answer(record: Mapping[str, Any], origin: str) -> tuple[str, list[str]]:
    """Return a record's answer and its other spellings."""
    answer = record.get("answer")
    inside = isinstance(answer, Mapping)
    value = answer.get("value") if isinstance(answer, Mapping) else answer
    aliases = (
        answer.get("aliases") if isinstance(answer, Mapping) else record.get("aliases")
    ) or []
    if not isinstance(value, str) or not value.strip():
        raise DataError(
            "E101",
            f"{origin}: {'answer.value' if inside else 'answer'} is no text"
            f" (columns: {', '.join(map(str, record))})",
            fix="the data needs TriviaQA's columns question and answer",
        )
    if not isinstance(aliases, list) or not all(isinstance(alias, str) for alias in aliases):
        raise DataError("E101", f"{origin}: aliases is no list of texts")
    return value, aliases


@hookimpl
def llmft_datasets() -> list[type[TriviaQA]]:
    return [TriviaQA]
