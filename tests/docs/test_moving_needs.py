"""The table of what other tools' files need: its counts are the files', its keys are there."""

from __future__ import annotations

import gzip
import json
import os
import re
from collections import Counter
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "moving.md"
CONFIGS = os.environ.get("LLMFT_PEER_CONFIGS")


def rows() -> list[tuple[str, int, str]]:
    text = PAGE.read_text("utf-8").partition("<!-- needs: begin -->")[2]
    lines = text.partition("<!-- needs: end -->")[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|", 2)] for line in lines if line]
    return [(need, int(count), here) for need, count, here in cells[2:]]


@pytest.mark.skipif(CONFIGS is None, reason="LLMFT_PEER_CONFIGS names no file of configurations")
def test_the_counts_are_those_of_the_configurations():
    assert CONFIGS is not None
    with gzip.open(CONFIGS, "rt", encoding="utf-8") as file:
        counts = Counter(need for line in file for need in json.loads(line)["needs"])
    left = dict(counts)
    for need, count, _ in rows():
        found = [name for name in left if name.startswith(need)]
        assert sum(left.pop(name) for name in found) == count, need
    assert left == {}


def test_the_keys_that_the_table_names_are_there():
    reference = (PAGE.parent / "recipe-reference.md").read_text("utf-8")
    known = set(re.findall(r"^\| `([^`]+)`", reference, re.M))
    methods = set(re.findall(r"^### `(\w+)`", reference, re.M))
    named = 0
    for _, _, here in rows():
        for block, key in re.findall(r"`(\w+)\.(\w+)`", here):
            full = f"{block}.{key}"
            own = block in ("data", "adapter", "alignment")
            assert full in known or (own and any(k.split(".")[0] == key for k in known)), full
            named += 1
        for method in re.findall(r"method: (\w+)", here):
            assert method in methods, method
            named += 1
    assert named > 40
