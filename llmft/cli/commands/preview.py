"""`llmft preview RECIPE`: the rows of each stage as they are trained on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmft.api.errors import RecipeError
from llmft.api.shown_text import escaped
from llmft.cli.commands import shipped
from llmft.cli.commands.output import LEARNT, ROLES, SPECIAL, colored, has_colors, prose
from llmft.recipes.load import load_recipe
from llmft.registry.registry import Registry
from llmft.system import fsio
from llmft.system.html_page import is_ours
from llmft.system.nearest import did_you_mean
from llmft.system.quiet import before_upstream, captured_output

if TYPE_CHECKING:
    from llmft.data.preview import StagePreview
    from llmft.data.shown_rows import Piece, ShownRow

_BAR = 40
_MOST = 2000  # characters of a text that a terminal gets


def preview(
    recipe: str,
    overrides: Sequence[str],
    *,
    rows: int,
    only: Sequence[str],
    stages: Sequence[str],
    html: str | None,
) -> tuple[str, list[StagePreview]]:
    """Return the recipe's name and a preview of each stage; write the page where one is asked."""
    from llmft.data.preview import PICKS

    job = load_recipe(shipped.find(recipe), Registry.discover(), overrides)
    _refuse_unknown(only, PICKS, "--only")
    _refuse_unknown(stages, [stage.name for stage in job.written.stages], "--stage")
    if html is not None:
        _refuse_other_files(Path(html))
    before_upstream()
    with captured_output(Path(os.devnull)):  # upstream's chatter is no part of the answer
        from llmft.engine.preview import preview_job
        from llmft.modeling.base_model import BaseModel

        base = BaseModel(job.recipe.model)
        found = preview_job(job, base, picks=rows, only=only or PICKS, stages=stages)
    if html is not None:
        from llmft.data.preview_page import preview_page

        fsio.write_text(Path(html), preview_page(job.recipe.name, found))
    return job.recipe.name, found


def _refuse_other_files(page: Path) -> None:
    """Raise unless a page may be written: an older one is replaced, and nothing else is."""
    if page.suffix not in (".html", ".htm"):
        raise RecipeError("E090", f"'{page}' is no name of a page", fix="write a name.html")
    if os.path.lexists(page) and not is_ours(page):
        fsio.refuse_overwriting(page)


def _refuse_unknown(given: Sequence[str], known: Sequence[str], option: str) -> None:
    for name in given:
        if name not in known:
            raise RecipeError(
                "E090",
                f"{option} is '{name}'; there is {', '.join(known)}",
                fix=did_you_mean(name, known) or "use one of these",
            )


def as_json(name: str, stages: Sequence[StagePreview]) -> dict[str, Any]:
    """Return previews as plain data, with the ids and labels of each row that is shown."""
    return {"name": name, "stages": [asdict(stage) for stage in stages]}


def as_text(stages: Sequence[StagePreview], page: str | None) -> str:
    """Return previews as text: of each stage its counts, then its rows."""
    parts = [_legend()] if any(stage.rows for stage in stages) else []
    for number, stage in enumerate(stages, 1):
        parts.append(prose("\n".join(summary(number, stage))))
        parts += [_row(row, stage.kind) for row in stage.rows]
    if page is not None:
        parts.append(f"written: {page}")
    return "\n\n".join(parts)


def summary(number: int, stage: StagePreview) -> list[str]:
    """Return the lines that say what a stage trains on, in numbers."""
    from llmft.data.preview_page import facts

    data = f" on {stage.data}" if stage.data else ""
    lines = [f"{number}. {stage.name}: {stage.method}{data}"]
    lines += [f"   {name}: {value}" for name, value in facts(stage)]
    most = max((count for _, _, count in stage.histogram), default=0)
    if most:
        lines.append("   lengths in tokens:")
        width = len(f"{stage.histogram[-1][1]:,}")
        for low, high, count in stage.histogram:
            bar = "#" * max(round(count / most * _BAR), bool(count))
            lines.append(f"   {low:>{width},} to {high:>{width},}  {count:>7,}  {bar}".rstrip())
    return lines


def _legend() -> str:
    if not has_colors():
        return "trained-on text stands between >>> and <<<"
    shown = [colored("trained on", LEARNT), colored("special token", SPECIAL)]
    return ", ".join([*shown, *(colored(role, color) for role, color in ROLES.items())])


def _row(row: ShownRow, kind: str) -> str:
    from llmft.data.preview_page import headline, part_name

    lines = [f"--- {escaped(headline(row))}"]
    for part in row.parts:
        if part.name:
            lines.append(f"[{part_name(part, kind)}]")
        lines.append(_text(part.pieces))
    if row.answers:
        lines.append(f"[right answers] {escaped(' | '.join(row.answers[:5]))}")
    return "\n".join(lines)


def _text(pieces: Sequence[Piece]) -> str:
    """Return a row's text, colored on a terminal, with marks around what is learnt in a pipe."""
    from llmft.data.preview_page import shortened

    shown, learning = [], False
    for piece in shortened(pieces, _MOST):
        color = SPECIAL if piece.special else ROLES.get(piece.role, "")
        text = colored(piece.text, f"{LEARNT};{SPECIAL}" if piece.learnt and piece.special
                        else LEARNT if piece.learnt else color)  # fmt: skip
        if piece.learnt != learning and not has_colors():
            learning = piece.learnt
            text = (">>>" if learning else "<<<") + text
        shown.append(text)
    return "".join(shown) + ("<<<" if learning else "")
