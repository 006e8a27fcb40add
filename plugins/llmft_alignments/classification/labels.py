"""The classes of a stage, and what each row's label is among them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from llmft.api import ClassificationRow, DataError, Label, Row

_SHOWN = 3
_NUMBER = re.compile(r"-?\d{1,18}")
Target = int | float | tuple[int, ...]
"""A class's number, the numbers of several, or what is to be predicted."""


class Classes:
    """Classes by name. A number is a name where every name is a number; else it is a place."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._place = {name: number for number, name in enumerate(self.names)}
        self._by_place = not all(_NUMBER.fullmatch(name) for name in self.names)

    def __len__(self) -> int:
        return len(self.names)

    def number(self, label: str | int | float) -> int | None:
        """Return the number of a class; None where there is no such class."""
        name = name_of(label)
        if name in self._place:
            return self._place[name]
        if self._by_place and _NUMBER.fullmatch(name) and 0 <= int(name) < len(self.names):
            return int(name)
        return None


def name_of(label: str | int | float) -> str:
    """Return a class's name: of a number its digits."""
    if isinstance(label, float) and label.is_integer():
        return str(int(label))
    return str(label)


def counted(rows: Iterable[Row]) -> list[str]:
    """Return the names of the classes that rows have: numbers by size, words by the alphabet."""
    names = {name_of(one) for row in rows for one in _each(_label(row))}
    if all(_NUMBER.fullmatch(name) for name in names):
        return sorted(names, key=int)
    return sorted(names)


def counts(rows: Iterable[Row], classes: Classes) -> Counter[int]:
    """Return how many rows have each class, by its number."""
    found = (classes.number(one) for row in rows for one in _each(_label(row)))
    return Counter(number for number in found if number is not None)


def refuse_misfits(rows: Sequence[Row], classes: Classes | None, *, several: bool) -> None:
    """Raise DataError, naming the first rows, where a label is none of the classes.

    classes: None where a number is predicted. several: whether a row may have several classes.
    """
    faults = [fault for row in rows if (fault := misfit(row, classes, several=several))]
    if not faults:
        return
    more = f" ({len(faults):,} rows in all)" if faults[_SHOWN:] else ""
    fix = "write problem_type: multi_label_classification if rows have several classes"
    if classes is None:
        fix = "correct the rows, or take another problem_type"
    elif not faults[0].endswith("classes"):
        fix = "correct the rows, name every class in alignment.id2label, or let the training rows"
        fix += " have each of them"
    raise DataError("E101", "; ".join(faults[:_SHOWN]) + more, fix=fix)


def misfit(row: Row, classes: Classes | None, *, several: bool) -> str:
    """Return what is wrong with a row's label, after where the row came from; '' where nothing."""
    label, at = _label(row), f"{row.origin}: " if row.origin else ""
    if classes is None:
        if isinstance(label, tuple) or _value(label) is None:
            return f"{at}the label {label!r:.60} is no number"
        return ""
    if isinstance(label, tuple) and not several:
        return f"{at}the label is a list of {len(label)} classes"
    for one in (each := _each(label)):
        if classes.number(one) is None:
            named = ", ".join(classes.names[:10]) + (", ..." if classes.names[10:] else "")
            return f"{at}the label {name_of(one)!r:.60} is none of the classes ({named})"
    numbers = [classes.number(one) for one in each]
    if len(set(numbers)) < len(numbers):
        twice = next(one for one in each if numbers.count(classes.number(one)) > 1)
        return f"{at}the label names the class {name_of(twice)!r:.60} twice, where names are wanted"
    return ""


def target_of(label: Label | None, classes: Classes | None, *, several: bool) -> Target:
    """Return what a row's head is to give; of a label that is not known, what is nothing.

    Raises ValueError where the label fits no class: `refuse_misfits` finds those before.
    """
    if label is None:
        return () if several else 0
    if classes is None:
        value = _value(label)
        if value is None:
            raise ValueError(f"the label {label!r} is no number")
        return value
    numbers = [classes.number(one) for one in _each(label)]
    found = tuple(number for number in numbers if number is not None)
    if len(found) < len(numbers):
        raise ValueError(f"the label {label!r} is no class")
    return found if several else found[0]


def _label(row: Row) -> Label:
    if not isinstance(row, ClassificationRow) or row.label is None:
        raise DataError("E105", f"{row.origin}: a {type(row).__name__} has no class")
    return row.label


def _each(label: Label) -> tuple[str | int | float, ...]:
    return label if isinstance(label, tuple) else (label,)


def _value(label: Label) -> float | None:
    try:
        return float(label) if isinstance(label, str | int | float) else None
    except ValueError:
        return None
