"""A text that ends an answer too: what is said where no answer of a step has met it."""

from __future__ import annotations

import pytest
from llmft_alignments.online.sampling import Sampler

from llmft.api import Answer, SamplingParams
from llmft.modeling.tiny_models import tiny_tokenizer
from tests.composed import composed

STOP = ord(".")
"""The tiny tokenizer's tokens are bytes."""


def said_of(*steps: list[list[int]], stop: str | None = ".") -> list[str]:
    """Return what is said of steps with answers of these tokens."""
    told: list[str] = []
    context = composed(tokenizer=tiny_tokenizer(), note=told.append)
    sampler = Sampler(context, SamplingParams(max_new_tokens=4), 2, stop)
    for answers in steps:
        sampler.note_unmet_stop([Answer(ids, ended=False) for ids in answers])
    return told


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([[[7, STOP], [8]]], 0),
        ([[[7], [8, STOP]]], 0),
        ([[[7], [8]]], 1),
        ([[[7], [8]], [[7]]], 1),
        ([[[], [8, STOP]]], 0),
        ([[[], []]], 1),
        ([[[STOP, 7]]], 1),
        ([[]], 0),
        ([[[STOP]], [[7]]], 1),
    ],
)
def test_that_no_answer_met_the_stop_token_is_told_once(steps, said):
    """An answer may be empty, and the token counts at an answer's end."""
    told = said_of(*steps)
    assert len(told) == said
    assert all("has met the stop_token '.'" in text for text in told)
