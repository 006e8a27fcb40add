"""Print how many tests were skipped, by reason, from pytest's JUnit files: skipped.py FILE..."""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path


def reasons(path: Path) -> Counter[str]:
    """Return how often each reason was given; numbers and paths in reasons are taken as alike."""
    return Counter(
        re.sub(r"'/[^']*'", "'...'", skipped.get("message", "no reason given"))
        for skipped in ET.parse(path).iter("skipped")
    )


def main(paths: list[str]) -> None:
    """Print the reasons of all files together."""
    found: Counter[str] = Counter()
    for path in map(Path, paths):
        if path.is_file():
            found += reasons(path)
    print(f"skipped: {found.total()} tests")
    for reason, count in found.most_common():
        print(f"  {count:5d}  {reason}")


if __name__ == "__main__":
    main(sys.argv[1:])
