"""From the figures of every round to a table: medians, ratios and their spread."""

from __future__ import annotations

import math
import statistics
from typing import Any

# What is promised: at least so many times as fast as the other, in CPU seconds.
BARS: dict[str, dict[str, tuple[float, str]]] = {
    "sft": {"trl": (2.5, "speed")},
    "dpo": {"trl": (4.0, "speed")},
    "reward": {"trl": (3.0, "speed")},
    "orpo": {"trl": (2.5, "speed")},
    "dora": {"llmft lora": (1 / 1.05, "speed")},
    "qlora": {"trl": (1.0, "speed")},
    "sft-135m": {"trl padding-free": (2.5, "speed")},
    "dpo-135m": {"trl": (3.3, "speed")},
    "dpo-135m-prompts": {"trl": (4.5, "speed")},
    "dora-135m": {"llmft lora": (1 / 1.05, "speed")},
    "dropout-135m": {"llmft lora": (1 / 1.05, "speed")},
}
HEAD = (
    ("task", 12), ("contestant", 13), ("CPU s", 8), ("wall s", 8), ("x CPU", 7),
    ("spread", 12), ("x wall", 7), ("tokens/s", 9), ("ready s", 8), ("peak MB", 8), ("apart", 8),
    ("products", 8),
)  # fmt: skip


def summary(result: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return for each contestant the medians, and how many times as long it took as llmft."""
    taken = result["taken"]
    ours = taken["llmft"]
    products = statistics.median(result.get("products") or [math.nan])
    out = {}
    for name, runs in taken.items():
        ratios = [a["cpu"] / b["cpu"] for a, b in zip(runs, ours, strict=True)]
        median = {key: statistics.median(run[key] for run in runs) for key in runs[0]
                  if key != "losses"}  # fmt: skip
        ours_cpu = statistics.median(run["cpu"] for run in ours)
        ours_wall = statistics.median(run["wall"] for run in ours)
        out[name] = {
            **median,
            "ratio": median["cpu"] / ours_cpu,
            "least": min(ratios),
            "most": max(ratios),
            "wall_ratio": median["wall"] / ours_wall,
            "tokens_per_second": result["tokens"] / median["wall"],
            "apart": apart(runs[0]["losses"], ours[0]["losses"]),
            "products": products / median["cpu"],
        }
    return out


def apart(some: list[float], others: list[float]) -> float:
    """Return the largest difference of two runs' losses, as a share of the larger."""
    if len(some) != len(others):
        return float("inf")
    pairs = zip(some, others, strict=True)
    return max(abs(a - b) / max(abs(a), abs(b), 1e-9) for a, b in pairs)


def losses_apart(result: dict[str, Any]) -> dict[str, float]:
    """Return how far the losses of each program with rows in our order are from ours."""
    found = summary(result)
    left_out = result.get("other_order", ())
    return {
        name: row["apart"]
        for name, row in found.items()
        if not name.startswith("llmft") and name not in left_out
    }


def told_apart(result: dict[str, Any], name: str) -> str:
    """Return how far a contestant's losses are from ours, where it takes the rows in our order."""
    if name in result.get("other_order", ()):
        return "other order"
    return f"{summary(result)[name]['apart']:.0e}"


def told_share(share: float) -> str:
    """Return which share of a contestant's CPU time the products alone take; '' if unknown."""
    return "" if math.isnan(share) else f"{share:.0%}"


def table(results: list[dict[str, Any]], header: bool = True) -> str:
    """Return the figures as lines of text."""
    lines = ["  ".join(f"{name:>{width}}" for name, width in HEAD)] if header else []
    for result in results:
        for name, row in summary(result).items():
            cells = (
                result["task"], name, f"{row['cpu']:.2f}", f"{row['wall']:.2f}",
                f"{row['ratio']:.2f}", f"{row['least']:.2f}..{row['most']:.2f}",
                f"{row['wall_ratio']:.2f}", f"{row['tokens_per_second']:.0f}",
                f"{row['ready']:.1f}", f"{row['peak'] / 1e6:.0f}", told_apart(result, name),
                told_share(row["products"]),
            )  # fmt: skip
            lines.append("  ".join(f"{c:>{w}}" for c, (_, w) in zip(cells, HEAD, strict=True)))
    return "\n".join(lines)
