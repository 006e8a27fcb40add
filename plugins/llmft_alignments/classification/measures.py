"""How good a classifier is: accuracy, F1 of each class and their mean, confusion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmft.toolkit import corpus_values, write_json, write_text

if TYPE_CHECKING:
    import torch

_MOST = 30  # classes in a table that is to be read


def macro_f1(chosen_PC: torch.Tensor, right_PC: torch.Tensor) -> float:
    """Return the mean F1 of the classes that occur, among the right ones or the chosen ones.

    chosen_PC, right_PC: whether a class is chosen, and whether it is right (bool).
    """
    of_class = f1_of_classes(chosen_PC, right_PC)
    occurs = (chosen_PC | right_PC).any(0)
    return float(of_class[occurs].mean()) if bool(occurs.any()) else 0.0


def f1_of_classes(chosen_PC: torch.Tensor, right_PC: torch.Tensor) -> torch.Tensor:
    """Return the F1 of each class, shape (C,), float64; 0 where it occurs nowhere."""
    both_C = (chosen_PC & right_PC).sum(0).double()
    whole_C = (chosen_PC.sum(0) + right_PC.sum(0)).double()
    return 2 * both_C / whole_C.clamp(min=1)


def macro_f1_values(chosen_PC: torch.Tensor, right_PC: torch.Tensor) -> list[float]:
    """Return a jackknife's value for each row, whose mean is the macro F1 of all."""

    def without(rows: Sequence[int]) -> dict[str, float]:
        return {"macro_f1": macro_f1(chosen_PC[list(rows)], right_PC[list(rows)])}

    whole = {"macro_f1": macro_f1(chosen_PC, right_PC)}
    return corpus_values(len(right_PC), whole, without)["macro_f1"]


def write_report(
    folder: Path, names: Sequence[str], chosen_PC: torch.Tensor, right_PC: torch.Tensor
) -> None:
    """Write `report.json` and `report.md`: each class, and what is taken for what."""
    both, chosen, right = (
        part.sum(0).tolist() for part in (chosen_PC & right_PC, chosen_PC, right_PC)
    )
    f1 = f1_of_classes(chosen_PC, right_PC).tolist()
    classes = [
        {
            "class": name,
            "precision": both[n] / chosen[n] if chosen[n] else None,
            "recall": both[n] / right[n] if right[n] else None,
            "f1": f1[n],
            "rows": right[n],
        }
        for n, name in enumerate(names)
    ]
    # Entry (i, j): rows of class i for which class j is chosen.
    confusion = (right_PC.double().T @ chosen_PC.double()).long().tolist()
    write_json(folder / "report.json", {"classes": classes, "confusion": confusion})
    write_text(folder / "report.md", _as_markdown(len(right_PC), classes, confusion))


def _as_markdown(
    rows: int, classes: Sequence[Mapping[str, Any]], confusion: Sequence[Sequence[int]]
) -> str:
    def share(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    def cell(text: object) -> str:
        return str(text).replace("|", "\\|").replace("\n", " ")

    table = "\n".join(
        f"| {cell(one['class'])} | {share(one['precision'])} | {share(one['recall'])} |"
        f" {share(one['f1'])} | {one['rows']} |"
        for one in classes
    )
    text = f"""# Classifier on {rows} held-out rows

| class | precision | recall | F1 | rows |
|---|---|---|---|---|
{table}
"""
    if len(classes) > _MOST:
        return text
    head = " | ".join(cell(one["class"]) for one in classes)
    lines = "\n".join(
        f"| {cell(one['class'])} | {' | '.join(map(str, line))} |"
        for one, line in zip(classes, confusion, strict=True)
    )
    return f"""{text}
## What is taken for what

A line for each right class, a column for each class that is chosen.

| | {head} |
|---|{"---|" * len(classes)}
{lines}
"""
