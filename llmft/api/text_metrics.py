"""How answers are judged: exact match and token F1 over aliases, and the number at the end.

Joshi et al. 2017, "TriviaQA", section 6 and its evaluation script: the score of an answer is its
best over all aliases.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from decimal import Decimal

_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation + "‘’´`", " "))
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalize_answer(text: str) -> str:
    """Return an answer in lower case, without punctuation, articles and extra white space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, right: Sequence[str]) -> float:
    """Return 1.0 if the normalised answer equals one of the right ones, else 0.0.

    An empty answer is never right. Beside TriviaQA's rules, an answer that is an article only keeps
    it, as 'A' and '(a)' of a multiple choice; a minus sign before a number counts; and accents
    are the same however they are written.
    """
    if _is_the_same(answer, right):
        return 1.0
    given = _compared(answer)
    return float(bool(given) and any(given == _compared(text) for text in right))


def f1(answer: str, right: Sequence[str]) -> float:
    """Return the best token F1 of the normalised answer against the right ones, in [0, 1].

    An answer that equals a right one letter for letter has 1; words are compared as in
    `exact_match`.
    """
    if _is_the_same(answer, right):
        return 1.0
    given = _compared(answer).split()
    return max((_token_f1(given, _compared(text).split()) for text in right), default=0.0)


def _is_the_same(answer: str, right: Sequence[str]) -> bool:
    return bool(answer.strip()) and any(answer.strip() == text.strip() for text in right)


_NEGATIVE = re.compile(r"(?<![\w)\]])[-\u2212](?=[$.]?\d)")
_MINUS = "minus "


def _compared(text: str) -> str:
    """Return an answer as TriviaQA normalises it, but with minus signs and lone articles."""
    text = _NEGATIVE.sub(_MINUS, unicodedata.normalize("NFC", text))
    return normalize_answer(text) or " ".join(text.lower().translate(_PUNCTUATION).split())


def _token_f1(given: Sequence[str], right: Sequence[str]) -> float:
    same = sum((Counter(given) & Counter(right)).values())
    if not same:
        return 0.0
    precision, recall = same / len(given), same / len(right)
    return 2 * precision * recall / (precision + recall)


def shown_score(score: Mapping[str, float | int | None], places: int = 2) -> str:
    """Return a score as it is told: '0.67 [0.21, 0.94] n=3'; without bounds where it has none.

    score: `value`, `low`, `high` and `n`, as in `StageResult.scores`.
    """

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.{places}f}"

    low, high = score.get("low"), score.get("high")
    bounds = "" if low is None or high is None else f" [{number(low)}, {number(high)}]"
    return f"{number(score.get('value'))}{bounds} n={score.get('n')}"


def first_line(text: str) -> str:
    """Return what stands on the first line that is not empty: where a short answer ends."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


_ONE = r"-?\$?(?:(?:\d{1,3}(?:,\d{3}){1,9}|\d{1,30})(?:\.\d{1,30})?|\.\d{1,30})"
# A fraction is one number; a date such as 1/2/2026 is not.
_NUMBER = re.compile(rf"(?<![\w.,])(?:(?<!\d/)({_ONE})/(\d{{1,30}})(?![\d/])|({_ONE})(?!\d))")
_MARK, _BOXED = "####", "\\boxed{"
# LaTeX's commas of thousands, and its fractions of two numbers.
_THOUSANDS = re.compile(r"(?<=\d)(?:\{,\}|,?\\[,!])(?=\d{3})")
_FRACTION = re.compile(r"\\[dt]?frac\{(\d{1,30})\}\{(\d{1,30})\}")


def last_number(text: str) -> Decimal | None:
    """Return the number that a solution ends with, or None where it has none.

    It is the first one after the last '####', as GSM8K marks an answer (Cobbe et al. 2021); else
    the last one in the last '\\boxed{}'; else the last one in the text. '$' and the commas of
    thousands do not count; 3/4 and '\\frac{3}{4}' are one number.
    """
    text = _THOUSANDS.sub(",", text.replace("\u2212", "-"))
    text = _FRACTION.sub(r"\1/\2", text)
    if _MARK in text and (marked := _numbers(text.rpartition(_MARK)[2])):
        return marked[0]
    if _BOXED in text and (inside := _numbers(_in_braces(text.rpartition(_BOXED)[2]))):
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


def _in_braces(text: str) -> str:
    """Return what stands before the brace that closes one opened before the text."""
    depth = 1
    for at, sign in enumerate(text):
        depth += {"{": 1, "}": -1}.get(sign, 0)
        if not depth:
            return text[:at]
    return text


def _numbers(text: str) -> list[Decimal]:
    return [_value(above or alone, below) for above, below, alone in _NUMBER.findall(text)]


def _value(number: str, divisor: str) -> Decimal:
    value = Decimal(number.replace("$", "").replace(",", ""))
    return value / int(divisor) if divisor.strip("0") else value
