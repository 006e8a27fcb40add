"""How answers are judged: exact match and token F1 over aliases, and the number at the end.

Joshi et al. 2017, "TriviaQA", section 6 and its evaluation script: the score of an answer is its
best over all aliases.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal

_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation + "‘’´`", " "))
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalize_answer(text: str) -> str:
    """Return an answer in lower case, without punctuation, articles and extra white space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, right: Sequence[str]) -> float:
    """Return 1.0 if the normalised answer equals one of the right ones, else 0.0."""
    given = normalize_answer(answer)
    return float(any(given == normalize_answer(text) for text in right))


def f1(answer: str, right: Sequence[str]) -> float:
    """Return the best token F1 of the normalised answer against the right ones, in [0, 1]."""
    given = normalize_answer(answer).split()
    return max((_token_f1(given, normalize_answer(text).split()) for text in right), default=0.0)


def _token_f1(given: Sequence[str], right: Sequence[str]) -> float:
    same = sum((Counter(given) & Counter(right)).values())
    if not same:
        return 0.0
    precision, recall = same / len(given), same / len(right)
    return 2 * precision * recall / (precision + recall)


def first_line(text: str) -> str:
    """Return what stands on the first line that is not empty: where a short answer ends."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


_NUMBER = re.compile(r"(?<![\w.,])-?\$?(?:\d{1,3}(?:,\d{3}){1,9}|\d{1,30})(?:\.\d{1,30})?(?![\d])")
_MARK, _BOXED = "####", re.compile(r"\\boxed\{([^{}]*)\}")


def last_number(text: str) -> Decimal | None:
    """Return the number that a solution ends with, or None where it has none.

    It is the first one after the last '####', as GSM8K marks an answer (Cobbe et al. 2021); else
    the last one in the last '\\boxed{}'; else the last one in the text. '$' and the commas of
    thousands do not count.
    """
    text = text.replace("\u2212", "-")
    if _MARK in text and (marked := _numbers(text.rpartition(_MARK)[2])):
        return marked[0]
    boxed = _BOXED.findall(text)
    if boxed and (inside := _numbers(boxed[-1])):
        return inside[-1]
    found = _numbers(text)
    return found[-1] if found else None


def final_number(answer: str, right: Sequence[str]) -> float:
    """Return 1.0 if an answer's last number is that of one of the right ones, else 0.0.

    A right answer without a number is right where it is given letter for letter.
    """
    given = last_number(answer)
    return float(
        any(
            answer.strip() == text.strip() if (wanted := last_number(text)) is None
            else given == wanted
            for text in right
            if text.strip()
        )
    )  # fmt: skip


def _numbers(text: str) -> list[Decimal]:
    found = (match.group().replace("$", "").replace(",", "") for match in _NUMBER.finditer(text))
    return [Decimal(number) for number in found]
