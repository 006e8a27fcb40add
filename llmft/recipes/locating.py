"""Faults that are found outside of the recipe's file, led back to its key, line and column."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from llmft.api.errors import LlmftError
from llmft.recipes.job import Job
from llmft.recipes.tree import KeyPath, dotted

NOT_HERE = "E201"
"""The code of a model or of data that cannot be had."""


@contextmanager
def about(key: str) -> Iterator[None]:
    """Let an E201 that names no key of the recipe name this one: `model.path`, or `data.path`."""
    try:
        yield
    except LlmftError as error:
        faults = [
            replace(fault, path=key) if fault.code == NOT_HERE and not fault.path else fault
            for fault in error.faults
        ]
        if faults == list(error.faults):
            raise
        raise type(error).of(faults) from error


@contextmanager
def located(job: Job, stage: str) -> Iterator[None]:
    """Give an E201 that names a key, but no place, the key's place in the recipe's file.

    stage: the stage that runs, by its name in whichever round; its `data` block is meant.
    """
    try:
        yield
    except LlmftError as error:
        faults = list(error.faults)
        for number, fault in enumerate(faults):
            if fault.code == NOT_HERE and fault.path and fault.place is None:
                key: KeyPath = tuple(fault.path.split("."))
                if key[0] == "data":
                    key = ("stages", job.index_of(stage), *key)
                place = job.source.tree.place(key)
                faults[number] = replace(fault, path=dotted(key), place=place)
        if faults == list(error.faults):
            raise
        raise type(error).of(faults) from error
