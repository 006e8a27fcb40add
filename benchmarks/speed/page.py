"""Fills the tables of docs/performance.md from what was measured; the text around them stays."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

from table import summary, told_apart, told_share
from workload import LARGER, TASKS

PAGE = Path(__file__).parents[2] / "docs" / "performance.md"
LIBRARIES = ("torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes")


def fill(section: str, results: list[dict[str, Any]]) -> None:
    """Write a section's table between its marks in the page."""
    made = {
        "tasks": _tasks, "larger": _tasks, "start": _start, "scaling": _scaling,
        "levers": _levers, "dora": _dora,
    }  # fmt: skip
    lines = made[section](results)
    text = PAGE.read_text("utf-8")
    begin, end = f"<!-- {section}: written by benchmarks/speed -->", f"<!-- end of {section} -->"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"'{PAGE}' has no marks for '{section}'")
    stacks = {row["stack"]: None for row in results if "stack" in row} or {machine(): None}
    whole = "\n".join([begin, "", *lines, "", *stacks, "", end])
    PAGE.write_text(pattern.sub(lambda _: whole, text), "utf-8")


def machine() -> str:
    """Return in a sentence what was measured on."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        if line.startswith("model name")
    ]
    versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    model = models[0] if models else platform.processor()
    python = platform.python_version()
    return f"Measured on {os.cpu_count()} cores of {model}, Python {python}, {versions}."


def _tasks(results: list[dict[str, Any]]) -> list[str]:
    shares = any(result.get("products") for result in results)
    names = [
        "task", "steps", "rounds", "contestant", "CPU s", "wall s", "times llmft's CPU",
        "tokens/s", "peak MB", "losses apart", *["products alone"] * shares,
    ]  # fmt: skip
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for result in results:
        for name, row in summary(result).items():
            spread = f" ({row['least']:.2f} to {row['most']:.2f})" if name != "llmft" else ""
            if (
                row["apart"] > (TASKS | LARGER)[result["task"]].tolerance
                and name in result["peers"]
            ):
                continue  # it did not train the same thing
            cells = [
                result["task"], f"{result['steps']}", f"{result['rounds']}", name,
                f"{row['cpu']:.1f}", f"{row['wall']:.1f}", f"{row['ratio']:.2f}{spread}",
                f"{row['tokens_per_second']:.0f}", f"{row['peak'] / 1e6:.0f}",
                told_apart(result, name), *[told_share(row["products"])] * shares,
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", f"OMP_NUM_THREADS={results[0]['threads']}.", *_peers(results)]


def _peers(results: list[dict[str, Any]]) -> list[str]:
    """Return a sentence with the versions of the peers that took part, if any."""
    peers = {name: at for result in results for name, at in result["peers"].items()}
    told = ", ".join(f"{name} {at}" for name, at in peers.items())
    return ["", f"In environments of their own: {told}."] if told else []


def _start(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["| | CPU s | wall s | times bare |", "|---|---|---|---|"]
    lines += [
        f"| {row['contestant']} | {row['cpu']:.1f} | {row['wall']:.1f} | {row['ratio']:.2f} |"
        for row in rows
    ]
    return [*lines, *_peers(rows)]


def _levers(rows: list[dict[str, Any]]) -> list[str]:
    names = list(dict.fromkeys(name for row in rows for name in row if name != "task"))
    lines = ["| times as long without | " + " | ".join(row["task"] for row in rows) + " |"]
    lines.append("|---" * (len(rows) + 1) + "|")
    for name in names:
        cells = [f"{row[name]:.2f}" if name in row else "" for row in rows]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def _scaling(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["| | sizes | CPU s | peak MB | grows as its power |", "|---|---|---|---|---|"]
    for row in rows:
        sizes, cpu, peak = (
            ", ".join(f"{value:,.{digits}f}" for value in row[key])
            for key, digits in (("sizes", 0), ("cpu", 1), ("peak_mb", 0))
        )
        lines.append(f"| {row['axis']} | {sizes} | {cpu} | {peak} | {row['power']:.2f} |")
    return [*lines, "", "![cost against rows, length and parameters](scaling.svg)"]


def _dora(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| width | base | tokens | LoRA, CPU s | PEFT's DoRA, times it | llmft's DoRA, times it |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['width']} | {row['base']} | {row['tokens']} | {row['lora']:.3f} |"
            f" {row['peft']:.2f} | {row['ours']:.3f} |"
        )
    return lines
