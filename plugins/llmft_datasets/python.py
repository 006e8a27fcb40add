"""Rows that a Python function of the user's own gives, which runs only under --trust."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, get_args

from llmft.api import (
    DataError,
    Dataset,
    DatasetConfig,
    Field,
    Line,
    Prompt,
    PromptRow,
    Row,
    RowKind,
    hookimpl,
)
from llmft.toolkit import (
    call_trusted,
    exact_match,
    f1,
    final_number,
    records_of_parts,
    trusted_function,
    trusted_items,
)
from llmft_datasets import chat, classification, jsonl, preference, prompts, unpaired

Identifier = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,99}$")]
_ANSWERS = "answers"


class Python(Dataset["Python.Config"]):
    """Rows that a function in a Python file gives; it runs only with `--trust file:FILE`.

    `def rows(split)` returns or yields dictionaries with TRL's columns: prompt and completion, and
    a label where they are unpaired; text, or text and label; messages; prompt, chosen and rejected;
    or a prompt alone; and, where they are known, answers.
    """

    method = "python"
    rows = get_args(RowKind)
    metrics = {"exact_match": exact_match, "f1": f1, "final_number": final_number}

    class Config(DatasetConfig):
        """Which function, and what it gives."""

        file: Line = Field(description="a Python file; it runs only with --trust file:FILE")
        function: Identifier = Field(
            "rows", description="the function in it: called with the name of a split"
        )
        rows: RowKind = Field("completion", description="what the dictionaries are, by TRL's names")
        chat: bool = Field(
            False,
            description="format text prompts as a user message, with the model's chat template",
        )

    def code(self) -> Mapping[str, str]:
        return {"file": self.config.file}

    def is_local(self) -> bool:
        return True

    def records(self, split: str) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Yield what the function gives of a split, each with its number as its origin.

        Raises TrustError (E607) where the file is not trusted, DataError (E109, E121).
        """
        return records_of_parts(split, self._whole)

    def row(self, record: Mapping[str, Any], origin: str) -> Row:
        row = self._reader(record).row(record, origin)
        if not isinstance(row, PromptRow):
            return row
        more = {key: value for key, value in record.items() if key not in ("prompt", _ANSWERS)}
        return PromptRow(row.prompt, row.answers, row.origin, more or None)

    def ask(self, question: str) -> Prompt:
        return self._reader({}).ask(question)

    def row_kind(self) -> RowKind:
        return self.config.rows

    def _whole(self, split: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        path, name = self.config.file, self.config.function
        function = trusted_function(path, name)
        takes_split = bool(call_trusted(path, inspect.signature, function).parameters)
        if not takes_split and split != "train":
            raise DataError(
                "E109",
                f"'{path}': {name}() takes no split, so there is no '{split}'",
                fix=f"write def {name}(split), or hold rows out: evaluate.holdout: 0.1",
            )
        given = call_trusted(path, function, *([split] if takes_split else []))
        for number, record in enumerate(trusted_items(path, given), 1):
            origin = f"{path}: {name}({split}), row {number}"
            if not isinstance(record, Mapping):
                what = f"{origin}: a dictionary is wanted, got a {type(record).__name__}"
                raise DataError("E121", what, fix="let the function give dictionaries")
            yield origin, dict(record)

    def _reader(self, record: Mapping[str, Any]) -> Dataset[Any]:
        """Return the data set that reads such records from files."""
        kind, in_chat = self.config.rows, self.config.chat
        answers = _ANSWERS if record.get(_ANSWERS) is not None else None
        where: dict[str, Any] = {"path": self.config.file}
        answered = {**where, "chat": in_chat, "repeated_prompt": "keep"}  # as the code gives them
        if kind == "chat":
            return chat.Chat(chat.Chat.Config(method="chat", **where))
        if kind == "preference":
            columns = preference.Columns(answers=answers)
            made = preference.Preference.Config(method="preference", columns=columns, **answered)
            return preference.Preference(made)
        if kind == "unpaired":
            judged = unpaired.Columns(answers=answers)
            return unpaired.Unpaired(
                unpaired.Unpaired.Config(method="unpaired", columns=judged, **answered)
            )
        if kind == "classification":
            made_of: Any = classification.Classification.Config
            return classification.Classification(
                made_of(method="classification", chat=in_chat, **where)
            )
        if kind == "prompt":
            asked = prompts.Columns(answers=answers)
            return prompts.Prompts(
                prompts.Prompts.Config(method="prompts", columns=asked, chat=in_chat, **where)
            )
        text = "text" if kind == "text" else None
        own = jsonl.Columns(text=text, answers=answers)
        return jsonl.Jsonl(jsonl.Jsonl.Config(method="jsonl", columns=own, **answered))


@hookimpl
def llmft_datasets() -> list[type[Python]]:
    return [Python]
