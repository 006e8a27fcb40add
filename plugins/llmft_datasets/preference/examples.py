"""A few made-up preferences, in the columns that a recipe names: for a smoke run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

EXAMPLES = (
    ("What is the capital of Norway?", " Oslo.", " Lima."),
    ("How many days has a week?", " Seven.", " I would rather not say."),
    ("Name a colour.", " Blue.", " Seven."),
    ("Who wrote Hamlet?", " William Shakespeare.", " Hamlet did."),
)
_FIELD = re.compile(r"\{([^{}]+)\}")


def example_records(columns: Any) -> list[Mapping[str, Any]]:
    """Return records that these settings read: `columns` as the data set's Config has them."""
    return [_record(columns, *example) for example in EXAMPLES]


def _record(columns: Any, prompt: str, chosen: str, rejected: str) -> Mapping[str, Any]:
    record: dict[str, Any] = {}
    texts = [(columns.prompt or "prompt", prompt)]
    if columns.candidates:
        record[columns.candidates] = [chosen, rejected]
        record[columns.scores or columns.ranks] = [2.0, 1.0] if columns.scores else [1, 2]
    else:
        texts += [(columns.chosen, chosen), (columns.rejected, rejected)]
    for column, text in texts:
        for name in _FIELD.findall(column) if "{" in column else [column]:
            # A field that several templates use, such as a common start, keeps its first text.
            record.setdefault(name, text)
    numbers = {columns.margin: 1.0, columns.chosen_score: 2.0, columns.rejected_score: 1.0}
    record |= {name: number for name, number in numbers.items() if name}
    return record | ({columns.answers: [chosen.strip()]} if columns.answers else {})
