"""`llmft list-plugins`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from llmft.cli.commands.output import table
from llmft.registry.registry import Registry


def records() -> tuple[list[dict[str, Any]], list[str]]:
    """Return a row for each installed method, broken ones too, and remarks on bad metadata."""
    registry = Registry.discover()
    return [asdict(record) for record in registry.records()], list(registry.remarks)


def as_text(rows: list[dict[str, Any]], remarks: list[str]) -> str:
    """Return the methods as a table, and below it what is wrong with some of them."""
    if not rows:
        return "no methods are installed; reinstall llmft"
    shown = [
        (row["kind"], row["method"], row["state"], f"{row['distribution']} {row['version']}",
         row["summary"] or row["reason"])
        for row in rows
    ]  # fmt: skip
    lines = [table(("kind", "method", "state", "from", "what it is"), shown)]
    lines += [f"{row['kind']} '{row['method']}' {text}" for row in rows for text in row["remarks"]]
    return "\n".join(lines + remarks)
