"""From the figures of every run to a table: medians, ratios and their spread; and who won."""

from __future__ import annotations

import statistics
from typing import Any

OURS = "llmft"
HEAD = (
    ("task", 16), ("contestant", 16), ("CPU s", 8), ("episodes/s", 11), ("x CPU", 7),
    ("spread", 12), ("x wall", 7), ("peak MB", 8), ("x peak", 7), ("score", 7), ("spread", 15),
    ("held out", 9), ("spread", 15), ("KL", 6),
)  # fmt: skip
"""x: TRL's over llmft's. score: the mean over training's episodes, penalties included, less those
of the first step, which are drawn before anything is learnt. held out: that of answers to held-out
prompts when training has ended, and their KL from the start."""


def summary(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return for each contestant the medians over seeds, and how it compares with llmft."""
    taken = result["taken"]
    ours = taken[OURS]
    found = {}
    for name, runs in taken.items():
        one: dict[str, Any] = {key: _median(runs, key) for key in ("cpu", "wall", "peak", "loaded")}
        for key in ("cpu", "wall", "peak"):
            one[f"x {key}"] = one[key] / _median(ours, key)
        ratios = [a["cpu"] / b["cpu"] for a, b in zip(runs, ours, strict=True)]
        one["x cpu spread"] = (min(ratios), max(ratios))
        one["episodes/s"] = result["episodes"] / one["wall"]
        for key, value in learnt(result, name).items():
            one[key] = statistics.median(value)
            one[f"{key} spread"] = (min(value), max(value))
        found[name] = one
    return found


def learnt(result: dict[str, Any], name: str) -> dict[str, list[float]]:
    """Return what a contestant learnt with each seed; nothing where no reward means anything."""
    runs = result["taken"][name]
    if "start" not in result:
        return {}
    return {
        "score": [statistics.fmean(step["score"] for step in run["steps"][1:]) for run in runs],
        "held out": [run["judged"]["score"] for run in runs],
        "kl": [run["judged"]["kl"] for run in runs],
        "welcome": [run["judged"]["welcome"] for run in runs],
        "right": [run["judged"]["right"] for run in runs],
    }


def missed(results: list[dict[str, Any]]) -> list[str]:
    """Return where llmft does not win: episodes a second, peak memory, and reward, of medians."""
    lost = []
    for result in results:
        found = summary(result)
        ours = found.pop(OURS)
        for name, other in found.items():
            for key in ("cpu", "wall", "peak"):
                if other[f"x {key}"] <= 1:
                    lost.append(f"{result['task']}: {key}, {other[f'x {key}']:.2f} x {name}'s")
            for key in ("score", "held out"):
                if key in ours and ours[key] <= other[key]:
                    lost.append(
                        f"{result['task']}: {key} {ours[key]:.3f}, {name}'s {other[key]:.3f}"
                    )
    return lost


def cells(result: dict[str, Any]) -> list[list[str]]:
    """Return a row of text for each contestant, under HEAD."""
    rows = []
    for name, one in summary(result).items():
        judged = [
            text
            for key in ("score", "held out")
            for text in (
                (f"{one[key]:.3f}", "{:.3f} to {:.3f}".format(*one[f"{key} spread"]))
                if key in one
                else ("", "")
            )
        ]
        rows.append([
            result["task"], name, f"{one['cpu']:.1f}", f"{one['episodes/s']:.2f}",
            f"{one['x cpu']:.2f}", "{:.2f} to {:.2f}".format(*one["x cpu spread"]),
            f"{one['x wall']:.2f}", f"{one['peak'] / 1e6:.0f}", f"{one['x peak']:.2f}",
            *judged, f"{one['kl']:.2f}" if "kl" in one else "",
        ])  # fmt: skip
    return rows


def table(results: list[dict[str, Any]]) -> str:
    """Return the figures as lines of text."""
    lines = ["  ".join(f"{name:>{width}}" for name, width in HEAD)]
    for result in results:
        for row in cells(result):
            lines.append("  ".join(f"{cell:>{w}}" for cell, (_, w) in zip(row, HEAD, strict=True)))
    return "\n".join(lines)


def _median(runs: list[dict[str, Any]], key: str) -> float:
    return statistics.median(run[key] for run in runs)
