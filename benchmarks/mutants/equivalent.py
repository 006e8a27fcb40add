"""Mutants that no test can tell from the code, each with its reason."""

from __future__ import annotations

EQUIVALENT: dict[tuple[str, str], str] = {}
"""(file, diff) -> why nothing that a user or a caller can see differs."""
