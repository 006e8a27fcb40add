"""Faults that are found outside of the recipe's file, led back to its key, line and column."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from llmft.api.errors import LlmftError
from llmft.recipes.job import Job
from llmft.recipes.tree import KeyPath, dotted

NOT_HERE = "E201"
NOT_INSTALLED = "E206"
"""The code of a model or of data that cannot be had."""
_UNUSABLE = (NOT_HERE, "E205", "E207")
"""The codes of a model that cannot be had, is too large, or has wrong weights."""


@contextmanager
def about(key: str) -> Iterator[None]:
    """Let a fault of what a recipe names name its key: `model.path`, or `data.path`.

    It is an E201, E205 or E207 that names none yet.
    """
    try:
        yield
    except LlmftError as error:
        faults = [
            replace(fault, path=key) if fault.code in _UNUSABLE and not fault.path else fault
            for fault in error.faults
        ]
        if faults == list(error.faults):
            raise
        raise type(error).of(faults) from error


def key_in(path: str) -> KeyPath:
    """Return a key that is written with dots, such as data.sources.1, as a recipe's tree has it."""
    return tuple(int(part) if part.isdigit() else part for part in path.split("."))


@contextmanager
def located(job: Job, stage: str) -> Iterator[None]:
    """Give a fault that names a key, but no place, the key's place in the recipe's file.

    It is an E201, E205, E206 or E207, or of a source of the stage's data.

    stage: the stage that runs, by its name in whichever round; its `data` block is meant.
    """
    try:
        yield
    except LlmftError as error:
        faults = list(error.faults)
        for number, fault in enumerate(faults):
            of_data = fault.path.startswith("data.")
            of_model = fault.code in (*_UNUSABLE, NOT_INSTALLED) and fault.path
            if (of_data or of_model) and fault.place is None:
                key = key_in(fault.path)
                if of_data:
                    key = ("stages", job.index_of(stage), *key)
                place = job.source.tree.place(key)
                faults[number] = replace(fault, path=dotted(key), place=place)
        if faults == list(error.faults):
            raise
        raise type(error).of(faults) from error
