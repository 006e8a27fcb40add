"""The committed recipe reference is what the classes say today."""

from __future__ import annotations

import runpy
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_the_recipe_reference_is_up_to_date(installed):
    made = runpy.run_path(str(DOCS / "make_reference.py"))["page"]()
    committed = (DOCS / "recipe-reference.md").read_text(encoding="utf-8")
    assert made == committed, "run: python docs/make_reference.py"
