"""How good a reward model is: accuracy, margins, calibration and the spread of its rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmft.toolkit import wilson, write_json, write_text

if TYPE_CHECKING:
    import torch

BINS = 10
BARS = 15
WIDTH = 40


def measured(rewards_P2: torch.Tensor) -> dict[str, float]:
    """Return the scores of a reward model on pairs: chosen in column 0, rejected in column 1.

    accuracy: how often the chosen answer gets more (ties count as wrong), with its 95 % interval.
    calibration_error: how far sigma(margin) is from how often it is right (`calibration`).
    """
    rewards_P2 = rewards_P2.double()
    gap_P = rewards_P2[:, 0] - rewards_P2[:, 1]
    accuracy = float((gap_P > 0).double().mean())
    low, high = wilson(accuracy, len(gap_P))
    return {
        "accuracy": accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
        "margin": float(gap_P.mean()),
        "calibration_error": calibration(gap_P)[0],
        "reward_mean": float(rewards_P2.mean()),
        "reward_std": float(rewards_P2.std(correction=0)),
    }


def calibration(gap_P: torch.Tensor) -> tuple[float, list[dict[str, float]]]:
    """Return the expected calibration error (Guo et al. 2017, eq. 3), and its bins.

    A pair's confidence is sigma(|margin|), in [0.5, 1], cut into ten bins of equal width; it is
    right where the chosen answer got more.
    """
    import torch

    confidence_P = torch.sigmoid(gap_P.abs())
    right_P = (gap_P > 0).double()
    bin_P = ((confidence_P - 0.5) * 2 * BINS).long().clamp(0, BINS - 1)
    bins, error = [], 0.0
    for number in range(BINS):
        inside = bin_P == number
        count = int(inside.sum())
        if not count:
            continue
        confidence, right = float(confidence_P[inside].mean()), float(right_P[inside].mean())
        bins.append({"pairs": count, "confidence": confidence, "right": right})
        error += count / len(gap_P) * abs(confidence - right)
    return error, bins


def write_report(folder: Path, rewards_P2: torch.Tensor, metrics: Mapping[str, float]) -> None:
    """Write `rewards.json` (every number) and `report.md` (the same, to be read) into a folder."""
    rewards_P2 = rewards_P2.double()
    bins = calibration(rewards_P2[:, 0] - rewards_P2[:, 1])[1]
    histogram = histograms(rewards_P2)
    chosen, rejected = (column.tolist() for column in rewards_P2.unbind(1))
    whole: dict[str, Any] = {"metrics": dict(metrics), "calibration": bins, "histogram": histogram}
    write_json(folder / "rewards.json", {**whole, "chosen": chosen, "rejected": rejected})
    write_text(folder / "report.md", as_markdown(len(chosen), metrics, bins, histogram))


def histograms(rewards_P2: torch.Tensor) -> list[dict[str, float]]:
    """Return bars over all rewards: their bounds, and how many chosen and rejected ones fall in."""
    import torch

    low, high = float(rewards_P2.min()), float(rewards_P2.max())
    step = (high - low) / BARS or 1.0
    at_P2 = ((rewards_P2 - low) / step).long().clamp(0, BARS - 1)
    counts = [torch.bincount(column, minlength=BARS).tolist() for column in at_P2.unbind(1)]
    return [
        {"from": low + n * step, "to": low + (n + 1) * step, "chosen": c, "rejected": r}
        for n, (c, r) in enumerate(zip(*counts, strict=True))
    ]


def as_markdown(
    pairs: int,
    metrics: Mapping[str, float],
    bins: Sequence[Mapping[str, float]],
    histogram: Sequence[Mapping[str, float]],
) -> str:
    """Return the report as Markdown that reads well as plain text too."""
    most = max(max(bar["chosen"], bar["rejected"]) for bar in histogram) or 1
    bars = "\n".join(
        f"{bar['from']:8.2f}  {label}  {int(bar[kind]):6d}  {_bar(bar[kind], most, mark)}".rstrip()
        for bar in reversed(histogram)
        for kind, label, mark in (("chosen", "chosen  ", "#"), ("rejected", "rejected", "-"))
    )
    table = "\n".join(f"| {name} | {value:.4f} |" for name, value in metrics.items())
    rows = "\n".join(
        f"| {int(one['pairs'])} | {one['confidence']:.3f} | {one['right']:.3f} |" for one in bins
    )
    return f"""# Reward model on {pairs} held-out pairs

| metric | value |
|---|---|
{table}

## Rewards

The number of answers whose reward lies at or above the bound on the left.

```
{bars}
```

## Calibration

How sure the model is of its choice, sigma(|margin|), and how often it is right.

| pairs | sure | right |
|---|---|---|
{rows}
"""


def _bar(count: float, most: float, mark: str) -> str:
    return mark * round(WIDTH * count / most)
