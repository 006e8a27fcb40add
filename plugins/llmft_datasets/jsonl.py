"""Rows of your own, from local files or the hub: prompts with completions, or plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import model_validator

from llmft.api import (
    CompletionRow,
    DataError,
    Field,
    Line,
    Message,
    Prompt,
    Row,
    RowKind,
    Settings,
    TextRow,
    hookimpl,
)
from llmft.toolkit import (
    TableConfig,
    TableDataset,
    answers_of,
    asked_as,
    fields_of,
    is_blank,
    messages_in,
    messages_of,
    text_of,
    with_system,
    with_tools,
    without_prompt,
)
from llmft_datasets.short_answers import METRICS

# Stanford Alpaca's two prompts (tatsu-lab/stanford_alpaca), with the line break before the answer
# that alpaca-lora and later tools put there.
_ALPACA = (
    "Below is an instruction that describes a task{paired}. Write a response that appropriately"
    " completes the request.\n\n### Instruction:\n{instruction}\n\n{given}### Response:\n"
)
_PAIRED = ", paired with an input that provides further context"


class Columns(Settings):
    """Which column, or which template of {columns}, gives what."""

    prompt: Line = Field(
        "prompt",
        description="a column, or a template such as 'Q: {question}'; {input?} may be empty or"
        " absent",
    )
    input: Line | None = Field(
        None,
        description="a column or template of what a prompt is about, such as Alpaca's 'input'; it"
        " may be empty or absent in a row",
    )
    completion: Line = Field("completion", description="a column, or a template")
    system: Line | None = Field(
        None, description="a column with the system text, for chat; it may be empty or absent"
    )
    history: Line | None = Field(
        None,
        description="a column with earlier turns, for chat: a list of [prompt, completion], as"
        " LLaMA-Factory has it, or messages; it may be empty or absent",
    )
    text: Line | None = Field(
        None, description="a column or template of plain text, in place of prompt and completion"
    )
    answers: Line | None = Field(
        None, description="a column with the right answer, or the list of right answers"
    )


class Jsonl(TableDataset["Jsonl.Config"]):
    """Prompts with completions, or plain text, from local files of any format, or the hub."""

    method = "jsonl"
    rows = ("completion", "text")
    metrics = METRICS

    class Config(TableConfig):
        """Where the rows are, and what their columns mean."""

        columns: Columns = Field(default_factory=Columns, description="which columns hold what")
        chat: bool = Field(
            False,
            description="format the prompt as a user message and the completion as its answer, with"
            " the model's chat template",
        )
        system: Annotated[str, Field(min_length=1, max_length=100_000)] | None = Field(
            None, description="a system text, for chat, for rows that have none"
        )
        prompt_style: Literal["plain", "alpaca"] = Field(
            "plain",
            description="plain: the prompt as it is, and the input on a line after it; alpaca:"
            " Stanford Alpaca's prompt, with or without an input",
        )
        special_tokens: Literal["parse", "text"] | None = Field(
            None,
            description="read special tokens that plain text spells as tokens, or as letters;"
            " default: refuse a text that spells any",
        )

        repeated_prompt: Literal["strip", "keep"] | None = Field(
            None,
            description="what is done with a completion that begins with its prompt: take the"
            " prompt off, or keep it; default: refuse such a row",
        )

        @model_validator(mode="after")
        def _no_contradiction(self) -> Jsonl.Config:
            columns = self.columns
            if columns.text and (self.chat or self.prompt_style != "plain"):
                raise ValueError(
                    "columns.text is plain text, to which neither chat nor prompt_style applies;"
                    " write columns.prompt and columns.completion"
                )
            if self.special_tokens and not columns.text:
                raise ValueError(
                    "special_tokens is about plain text (columns.text); in prompts and completions"
                    " special tokens always stay text"
                )
            if not self.chat and (self.system or columns.system or columns.history):
                raise ValueError("system and history need the chat template; write chat: true")
            return self

    def row_kind(self) -> RowKind:
        return "text" if self.config.columns.text else "completion"

    def row(self, record: Mapping[str, Any], origin: str) -> Row:
        columns = self.config.columns
        if columns.text:
            text = _not_empty(text_of(record, columns.text, origin), origin)
            return TextRow(text, origin, self.config.special_tokens)
        prompt = self._prompt(record, origin)
        asked = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        answered = messages_in(record.get(columns.completion), origin) if self.config.chat else None
        if answered is not None:
            return self._spoken(prompt, answered, record, origin)
        completion = text_of(record, columns.completion, origin)
        (completion,) = without_prompt(asked, [completion], self.config.repeated_prompt, origin)
        _not_empty(completion, origin)
        if self.config.chat:
            completion = completion.strip()  # a chat template sets its own space before an answer
        return CompletionRow(
            prompt,
            completion,
            answers_of(record, columns.answers, origin) or (completion.strip(),),
            origin,
        )

    def ask(self, question: str) -> Prompt:
        styled = self._styled(asked_as(self.config.columns.prompt, question), "")
        if not self.config.chat:
            return styled
        return with_system((Message(role="user", content=styled),), self.config.system, "question")

    def example_records(self) -> Sequence[Mapping[str, Any]]:
        columns = self.config.columns
        asked = fields_of(columns.text or columns.prompt)
        answered = [] if columns.text else fields_of(columns.completion)
        return [
            dict.fromkeys(answered, f"answer {number}")
            | dict.fromkeys(asked, f"example {number}")
            | ({columns.answers: ["example"]} if columns.answers else {})
            for number in range(4)
        ]

    def _spoken(
        self, prompt: Prompt, answered: Sequence[Any], record: Mapping[str, Any], origin: str
    ) -> Row:
        """Return the row of a completion that is messages, as TRL has it: the assistant's one."""
        assert not isinstance(prompt, str)
        *before, answer = messages_of([*prompt, *answered], origin)
        if len(answered) != 1 or answer["role"] != "assistant":
            raise DataError(
                "E101",
                f"{origin}: the column '{self.config.columns.completion}' is not one turn of the"
                " assistant's",
                fix="put the prompt's and the completion's messages into one column, for"
                " data.method: chat",
            )
        text = answer["content"]
        right = answers_of(record, self.config.columns.answers, origin) or ((text,) if text else ())
        more = answer if len(answer) > len(("role", "content")) else None
        prompt = with_tools(tuple(before), record, origin)
        return CompletionRow(prompt, text, right, origin, more)

    def _prompt(self, record: Mapping[str, Any], origin: str) -> Prompt:
        columns = self.config.columns
        if self.config.chat and (asked := messages_in(record.get(columns.prompt), origin)):
            if self.config.prompt_style != "plain" or columns.input or columns.history:
                raise DataError(
                    "E101",
                    f"{origin}: the column '{columns.prompt}' holds messages, to which neither"
                    " prompt_style nor columns.input and columns.history apply",
                    fix="leave these out, or name a column of text as data.columns.prompt",
                )
            prompt = self._with_system(messages_of(asked, origin), record, origin)
            return with_tools(prompt, record, origin)
        text = text_of(record, columns.prompt, origin)
        given = _optional(record, columns.input, origin)
        styled = self._styled(text, "" if is_blank(given) else given)
        if not self.config.chat:
            return styled
        earlier = _history(record.get(columns.history), origin) if columns.history else ()
        messages = (*earlier, Message(role="user", content=styled))
        return self._with_system(messages, record, origin)

    def _with_system(
        self, messages: tuple[Message, ...], record: Mapping[str, Any], origin: str
    ) -> tuple[Message, ...]:
        own = _optional(record, self.config.columns.system, origin)
        messages = with_system(messages, own, origin)
        if messages[0]["role"] not in ("system", "developer"):
            messages = with_system(messages, self.config.system, origin)
        return messages

    def _styled(self, text: str, given: str) -> str:
        if self.config.prompt_style == "plain":
            return f"{text}\n{given}" if given else text
        return _ALPACA.format(
            paired=_PAIRED if given else "",
            instruction=text,
            given=f"### Input:\n{given}\n\n" if given else "",
        )


def _optional(record: Mapping[str, Any], column: str | None, origin: str) -> str:
    """Return a record's text in a column that may be empty or absent, or by a template."""
    if column is None:
        return ""
    return text_of(record, column if "{" in column else f"{{{column}?}}", origin)


def _history(value: Any, origin: str) -> tuple[Message, ...]:
    """Return earlier turns: pairs of texts, or messages that end with the assistant's."""
    if not value:
        return ()
    if isinstance(value, list) and all(isinstance(pair, list | tuple) for pair in value):
        if any(len(pair) != 2 or not all(isinstance(t, str) for t in pair) for pair in value):
            raise DataError("E101", f"{origin}: the history has a turn that is not two texts")
        value = [
            {"role": role, "content": text}
            for pair in value
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
    messages = messages_of(value, origin)
    if messages[-1]["role"] != "assistant":
        raise DataError("E101", f"{origin}: the history does not end with the assistant's turn")
    return messages


def _not_empty(text: str, origin: str) -> str:
    if is_blank(text):
        raise DataError("E101", f"{origin}: there is nothing to train on: the text is empty")
    return text


@hookimpl
def llmft_datasets() -> list[type[Jsonl]]:
    return [Jsonl]
