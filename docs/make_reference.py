"""Write `docs/recipe-reference.md` from the settings classes: python docs/make_reference.py."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from llmft.cli.commands.fields import FieldRow, fields
from llmft.recipes.recipe import Recipe, Stage
from llmft.registry.contract import KINDS
from llmft.registry.registry import Registry

PAGE = Path(__file__).parent / "recipe-reference.md"
HEAD = """# Recipe reference

Written by `docs/make_reference.py` from the classes that check recipes; do not edit it by hand.
`llmft show METHOD` prints the same for every installed method, plugins included, and
`llmft schema` prints a JSON Schema for editors.

A recipe is YAML 1.2: `2e-4` is a number, `no` is text, unknown and duplicate keys are errors.
"""
KIND_TITLES = {
    "adapter": ("Adapters", "`stages[].adapter`: what is trained."),
    "alignment": ("Alignments", "`stages[].alignment`: what is optimised."),
    "task": ("Tasks", "`stages[].task`: what a stage makes where it trains nothing."),
    "reward": (
        "Reward functions",
        "What scores answers: `judge` of `rank`, `reward` of `ppo`, `rewards[]` of `grpo`, `rloo`.",
    ),
    "dataset": ("Data sets", "`stages[].data`: the rows."),
    "optimizer": (
        "Optimisers",
        "`stages[].train.optim`: what moves the parameters. Those that ship with llmft are chosen"
        " by name too. The learning rate, betas and weight decay are `train`'s.",
    ),
    "schedule": (
        "Learning-rate schedules",
        "`stages[].train.lr_scheduler_type`: how the learning rate moves. Those that ship with"
        " llmft are chosen by name too, with `lr_scheduler_kwargs`.",
    ),
    "callback": (
        "Callbacks",
        "`stages[].plugins[]`: what acts after each optimiser step of a stage.",
    ),
    "metric": (
        "Metrics",
        "`stages[].evaluate.metrics[]`: how answers to held-out rows are scored, beside the loss"
        " and the data set's own metrics. A name of the data set's own metric means that one.",
    ),
    "tracker": ("Trackers", "`trackers[]`: where progress and metrics are reported."),
}


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")


def page() -> str:
    """Return the reference: the recipe's own blocks, then every method that comes with llmft."""
    parts = [HEAD, "## The recipe\n", table(own_fields(Recipe))]
    parts += ["## A stage: `stages[]`\n", table(own_fields(Stage))]
    blocks = dict.fromkeys(("model", "push_to_hub", "repeat"), Recipe)
    blocks |= dict.fromkeys(("train", "evaluate"), Stage)
    for name, owner in blocks.items():
        rows = [row for row in fields(owner) if row.key.startswith(f"{name}.")]
        where = name if owner is Recipe else f"stages[].{name}"
        parts += [f"## `{where}`\n", table(rows)]
    registry = Registry.discover()
    for kind in KINDS:
        title, meaning = KIND_TITLES[kind]
        parts += [f"## {title}\n", f"{meaning}\n"]
        for record in registry.records():
            # A page about llmft must not depend on what else its author has installed.
            if record.kind == kind and record.distribution == "llmft":
                parts.append(method(registry.method(kind, record.method)))
    return "\n".join(parts)


def own_fields(block: type[BaseModel]) -> list[FieldRow]:
    """Return a block's own fields, without those of the blocks within it."""
    return [row for row in fields(block) if "." not in row.key]


def method(cls: type[Any]) -> str:
    """Return a method's section: its documentation and its settings."""
    doc = inspect.cleandoc(cls.__doc__ or "")
    rows = [row for row in fields(cls.Config) if row.key != "method"]
    settings = table(rows) if rows else "It has no settings.\n"
    return f"### `{cls.method}`\n\n{doc}\n\n{settings}"


def table(rows: list[FieldRow]) -> str:
    """Return fields as a Markdown table."""
    lines = ["| key | type | default | bounds | meaning |", "|---|---|---|---|---|"]
    for row in rows:
        default = "**required**" if row.required else f"`{row.default}`" if row.default else ""
        # A pattern's brackets would be read as a link.
        bounds = f"`{row.bounds}`" if "[" in row.bounds else row.bounds
        cells = (f"`{row.key}`", row.type, default, bounds, row.description)
        lines.append("| " + " | ".join(_escaped(cell) for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|").replace("<", "\\<")


if __name__ == "__main__":
    main()
