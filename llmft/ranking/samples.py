"""What is ranked: prompts, each with several answers of a model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmft.api.errors import DataError, Fault
from llmft.api.rows import Message, Prompt
from llmft.data.tables import read_file
from llmft.ranking.ratings import Ratings

RATINGS = "ratings"  # the folder beside the samples file
MOST_ANSWERS = 26  # each has a letter
_SHOWN_FAULTS = 20


@dataclass(frozen=True, slots=True)
class Sample:
    """A prompt with k answers.

    id: the SHA-256 of prompt and completions, so that ratings follow an item wherever it stands in
        the file, and fit no other.
    answers: the right answers, where they are known.
    distinct: the completions' indices, those of equal text together; a person sees each text once.
    """

    id: str
    prompt: Prompt
    completions: tuple[str, ...]
    answers: tuple[str, ...]
    distinct: tuple[tuple[int, ...], ...]


def read_samples(path: Path) -> tuple[Sample, ...]:
    """Return the samples of a file in its order; one that stands there twice is taken once.

    Raises DataError that lists the rows that are wrong (E101), or says that there are none (E110).
    """
    found: dict[str, Sample] = {}
    faults: list[Fault] = []
    for origin, record in read_file(path):
        wrong = _fault(record)
        if wrong:
            faults.append(Fault("E101", f"{origin}: {wrong}"))
            continue
        sample = sample_of(record["prompt"], record["completions"], record.get("answers") or ())
        found.setdefault(sample.id, sample)
    if faults:
        raise DataError.of(faults[:_SHOWN_FAULTS])
    if not found:
        raise DataError("E110", f"'{path}' has no rows", fix="collect answers first")
    return tuple(found.values())


def sample_of(prompt: Any, completions: Sequence[str], answers: Sequence[str] = ()) -> Sample:
    """Return a sample with its identity; prompt: a text, or messages with role and content."""
    asked: Prompt
    if isinstance(prompt, str):
        asked = prompt
    else:
        asked = tuple(Message(role=turn["role"], content=turn["content"]) for turn in prompt)
    text = json.dumps([asked, list(completions)], sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()
    same: dict[str, list[int]] = {}
    for index, completion in enumerate(completions):
        same.setdefault(completion.strip(), []).append(index)
    distinct = tuple(tuple(indices) for indices in same.values())
    return Sample(digest, asked, tuple(completions), tuple(answers), distinct)


def rankable(samples: Sequence[Sample]) -> tuple[Sample, ...]:
    """Return the samples whose answers are not all the same."""
    return tuple(sample for sample in samples if len(sample.distinct) > 1)


def remaining(
    samples: Sequence[Sample], ratings: Ratings, rater: str | None = None
) -> tuple[Sample, ...]:
    """Return the samples that a rater has yet to rank; without a name, those that nobody has."""
    by_rater = ratings.by_rater
    raters = by_rater.values() if rater is None else [by_rater.get(rater, {})]
    rated = {item for decisions in raters for item in decisions}
    return tuple(sample for sample in rankable(samples) if sample.id not in rated)


def finished(samples: Sequence[Sample], ratings: Ratings) -> list[str]:
    """Return the raters who have ranked every sample."""
    return [name for name in ratings.by_rater if not remaining(samples, ratings, name)]


def _fault(record: Mapping[str, Any]) -> str:
    """Return what is wrong with a row, or ''."""
    prompt, completions = record.get("prompt"), record.get("completions")
    if isinstance(prompt, list):
        if not prompt or not all(_is_turn(turn) for turn in prompt):
            return "the prompt is no list of messages with role and content"
    elif not isinstance(prompt, str) or not prompt.strip():
        return "the prompt is missing, empty, or no text"
    if not isinstance(completions, list) or not all(isinstance(one, str) for one in completions):
        return "'completions' is no list of texts"
    if not 2 <= len(completions) <= MOST_ANSWERS:
        return f"{len(completions)} completions; to be ranked there must be 2 to {MOST_ANSWERS}"
    answers = record.get("answers") or []
    if not isinstance(answers, list) or not all(isinstance(one, str) for one in answers):
        return "'answers' is no list of texts"
    return ""


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, dict) and all(
        isinstance(turn.get(key), str) for key in ("role", "content")
    )
