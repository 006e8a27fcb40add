"""Each fault on the page has a test that is named after it, or a reason why it is refused."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "reliability.md").read_text("utf-8")
COUNT = {"R": 16, "D": 14, "T": 13, "C": 13, "O": 6, "N": 5, "S": 9, "P": 6, "E": 3}


def rows() -> dict[str, str]:
    """Return what the page says is done about each fault, by its id."""
    return dict(re.findall(r"^\| ([A-Z]\d+) \|.*\| ([^|]+) \|$", PAGE, re.MULTILINE))


def names_of_tests() -> set[str]:
    files = (ROOT / "tests").rglob("test_*.py")
    text = "\n".join(path.read_text("utf-8") for path in files)
    return set(re.findall(r"def (test_\w+)\(", text))


def test_the_page_lists_every_fault():
    ids = [f"{letter}{n}" for letter, count in COUNT.items() for n in range(1, count + 1)]
    assert sorted(rows()) == sorted(ids)


def test_every_fault_has_a_test_of_its_name_or_is_refused():
    tested = {
        part.upper()
        for name in names_of_tests()
        for part in re.findall(r"(?<=_)([a-z]\d+)(?=_)", name)
    }
    refused = set(re.findall(r"^- \*\*([A-Z]\d+)\*\*", PAGE, re.MULTILINE))
    assert refused
    for fault in rows():
        assert (fault in tested) or (fault in refused), fault
