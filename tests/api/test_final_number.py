"""The number that an answer ends with: by GSM8K's mark, in a box, or the last one."""

from __future__ import annotations

from decimal import Decimal

import pytest

from llmft.api.text_metrics import final_number, last_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("He has 3 + 4 = 7 apples.\n#### 7", 7),
        ("#### 12 apples, of 40", 12),
        ("#### 1 was wrong\n#### 2", 2),
        ("#### none, but 5", 5),
        ("so it is \\boxed{42}, not 7", 42),
        ("\\boxed{x = 3} of 9", 3),
        ("It costs $1,234.50.", Decimal("1234.5")),
        ("1,2 and 3,000,000", 3_000_000),
        ("it fell to -5", -5),
        ("it fell to \u22125", -5),
        ("between 20-30", 30),
        ("7.0", 7),
        ("5kg", 5),
        ("model B52", None),
        ("about .5", Decimal("0.5")),
        ("it is -.25", Decimal("-0.25")),
        ("so 3/4 of it", Decimal("0.75")),
        ("on 1/2/2026", 2026),
        ("5/0", 5),
        ("\\boxed{\\frac{3}{4}}, of 8", Decimal("0.75")),
        ("\\boxed{\\text{42}}, as 6 * 7", 42),
        ("\\boxed{1{,}000}", 1000),
        ("10\\,000 or 20,\\!000", 20_000),
        ("1" * 30, int("1" * 30)),
        ("9" * 100_000, None),
        ("", None),
        ("no number", None),
    ],
)
def test_the_last_number_of_a_text(text, number):
    assert last_number(text) == number


def test_an_answer_is_right_by_its_number_alone():
    assert final_number("That makes 72.0 clips", ("48 + 24 = 72\n#### 72",)) == 1.0
    assert final_number("#### 73", ("#### 72", "#### 73")) == 1.0
    assert final_number("#### 71", ("#### 72",)) == 0.0
    assert final_number("1/4", ("3/4",)) == 0.0
    assert final_number("2/6", ("\\frac{1}{3}",)) == 1.0
    assert final_number("no number", ("none",)) == 0.0
    assert final_number("5", ()) == 0.0
