"""A stranger's text is read, and does nothing."""

from __future__ import annotations

import json
import sys
import unicodedata

from llmft.api.shown_text import escaped, escaped_in_json, on_one_line
from tests.acting_text import ACTS, acts


def test_exactly_what_acts_is_escaped():
    turning = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    marks = {"\u200e", "\u200f", "\u061c"}
    for point in range(sys.maxunicode + 1):
        char = chr(point)
        control = unicodedata.category(char) in ("Cc", "Cs") and char not in "\n\t"
        if control or unicodedata.bidirectional(char) in turning or char in marks:
            assert escaped(char) == f"<U+{point:04X}>"
        elif unicodedata.category(char)[0] in "LNMPSZ" and char not in "\u2028\u2029":
            assert escaped(char) == char
    for text in ("مرحبا", "שלום", "می‌خواهم", "👩‍🚀 é漢", "a\n\tb"):
        assert escaped(text) == text


def test_json_with_escapes_means_the_same():
    value = {"text": ACTS + "\u2028é\n"}
    told = escaped_in_json(json.dumps(value, ensure_ascii=False))
    assert acts(told) == []
    assert json.loads(told) == value


def test_a_name_on_one_line_begins_no_other():
    assert on_one_line("a\r\nb\tc\x85\u2028") == "a<U+000D><U+000A>b<U+0009>c<U+0085><U+2028>"
