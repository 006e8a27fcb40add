"""The forms in which preferences come, each made one: a prompt and two answers to it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, takewhile
from typing import Any

from llmft.api import DataError, Message, Prompt
from llmft.toolkit import messages_in, messages_of

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
CHOSEN, REJECTED, MARGIN, TIE = "chosen", "rejected", "margin", "tie"

Parts = tuple[Prompt, str, str]


def split_texts(
    chosen: str, rejected: str, origin: str, *, guess: bool, others: Sequence[str] = ()
) -> Parts:
    """Return the common start of two texts as their prompt, and what is left of each.

    Texts in Anthropic's HH format part after the last 'Assistant:'. Others part, where a guess is
    allowed, at the last white space before they differ, which goes to the answers. others: the
    columns beside the two.
    """
    both = zip(chosen, rejected, strict=False)
    same = chosen[: sum(1 for _ in takewhile(lambda letters: letters[0] == letters[1], both))]
    if ASSISTANT in chosen and ASSISTANT in rejected:
        at = same.rfind(ASSISTANT)
        if at < 0 or not at == chosen.rfind(ASSISTANT) == rejected.rfind(ASSISTANT):
            raise DataError("E101", f"{origin}: the conversations part before the last answer")
        at += len(ASSISTANT)
        if HUMAN in chosen[at:] or HUMAN in rejected[at:]:
            raise DataError("E101", f"{origin}: the last turn is not the assistant's")
    else:
        if not guess:
            raise DataError(
                "E101",
                f"{origin}: no column 'prompt' beside the two answers"
                + (f" (there is: {', '.join(others)})" if others else ""),
                fix="name its column as data.columns.prompt, or write data.common_start: true to"
                " take the common beginning of both answers",
            )
        at = max(same.rfind(space) for space in " \n\t")
        if at <= 0:
            raise DataError(
                "E101",
                f"{origin}: the two texts have no common start, so there is no prompt",
                fix="name its column as data.columns.prompt",
            )
    return chosen[:at], chosen[at:], rejected[at:]


def hh_messages(prompt: str, origin: str) -> tuple[Message, ...]:
    """Return a prompt in HH format as messages; raise DataError where it is none."""
    messages: list[Message] = []
    for turn in prompt.removesuffix(ASSISTANT).split("\n\n"):
        if turn.startswith("Human:"):
            messages.append(Message(role="user", content=turn.removeprefix("Human:").strip()))
        elif turn.startswith("Assistant:"):
            text = turn.removeprefix("Assistant:").strip()
            messages.append(Message(role="assistant", content=text))
        elif messages:
            last = messages[-1]
            messages[-1] = Message(role=last["role"], content=f"{last['content']}\n\n{turn}")
        elif turn.strip():
            messages.append(Message(role="system", content=turn.strip()))
    return messages_of(messages, origin)


def split_conversations(
    prompt: Any, chosen: list[Any] | None, rejected: list[Any] | None, origin: str
) -> tuple[Parts, bool]:
    """Return two conversations as their common messages and the last answer of each.

    prompt: the messages before the answers; or a text, which is the user's turn where the
    conversations hold the answers alone; or None. Returned beside it: whether the prompt is in it.
    """
    before = messages_in(prompt, origin) or []
    before = [dict(turn) if isinstance(turn, Mapping) else turn for turn in before]
    if isinstance(prompt, str) and not before:
        alone = all(answer is not None and len(answer) == 1 for answer in (chosen, rejected))
        before = [{"role": "user", "content": prompt}] if alone else []
    whole = []
    for answer in (chosen, rejected):
        if answer is None:
            raise DataError("E101", f"{origin}: one answer is messages, the other is not")
        own = answer[: len(before)] == before
        whole.append(messages_of(answer if own else [*before, *answer], origin))
    one, other = whole
    if one[:-1] != other[:-1]:
        raise DataError("E101", f"{origin}: the conversations part before the last answer")
    if not one[-1]["role"] == other[-1]["role"] == "assistant":
        raise DataError("E101", f"{origin}: the last turn is not the assistant's")
    for message in (one[-1], other[-1]):
        if more := sorted(set(message) - {"role", "content"}):
            raise DataError("E101", f"{origin}: an answer has {more[0]}, and only text is compared")
    known = [" ".join(message["content"].split()) for message in one[:-1]]
    is_in = bool(before) or any(" ".join(str(prompt).split()) in text for text in known)
    return (one[:-1], one[-1]["content"], other[-1]["content"]), is_in


def ranked_pairs(
    record: Mapping[str, Any], origin: str, candidates: str, scores: str | None, ranks: str | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a record for every two of its candidate answers, the better one chosen.

    scores, ranks: the column of numbers; a higher score is better, a lower rank is. Equal ones
    are marked as a tie. A record that is not as it should be is yielded as it came.
    """
    found = _judged(record, candidates, scores or ranks or "")
    if isinstance(found, str):
        yield origin, dict(record)
        return
    answers, numbers = found
    better = numbers if scores else [-number for number in numbers]
    used = (candidates, scores or ranks)
    rest = {key: value for key, value in record.items() if key not in used}
    for i, j in combinations(range(len(answers)), 2):
        first, second = (i, j) if better[i] >= better[j] else (j, i)
        gap = better[first] - better[second]
        pair = {CHOSEN: answers[first], REJECTED: answers[second], TIE: gap == 0}
        margin = {MARGIN: gap} if scores else {}
        yield f"{origin}: answers {first + 1} and {second + 1}", rest | pair | margin


def ranking_fault(record: Mapping[str, Any], candidates: str, numbers: str) -> str:
    """Return what is wrong with a record of ranked answers, or ''."""
    found = _judged(record, candidates, numbers)
    return found if isinstance(found, str) else ""


def _judged(
    record: Mapping[str, Any], candidates: str, column: str
) -> tuple[list[Any], list[float]] | str:
    answers: Any = record.get(candidates)
    numbers: Any = record.get(column)
    for name, value in ((candidates, answers), (column, numbers)):
        if not isinstance(value, list) or len(value) < 2:
            return f"the column '{name}' is no list of two or more"
    if len(answers) != len(numbers):
        return f"'{candidates}' has {len(answers)} entries, '{column}' has {len(numbers)}"
    if not all(_is_number(number) for number in numbers):
        return f"the column '{column}' holds something that is no finite number"
    return answers, [float(number) for number in numbers]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def number_of(record: Mapping[str, Any], column: str, origin: str) -> float:
    """Return a record's number in a column, also where it is written as text."""
    value = record.get(column)
    try:
        number = float(value) if isinstance(value, str) else value
    except ValueError:
        number = None
    if number is None or not _is_number(number):
        raise DataError("E101", f"{origin}: the column '{column}' is no finite number")
    return float(number)
