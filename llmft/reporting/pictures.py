"""A run's curves as PNG, for papers and slides, drawn by matplotlib. Imports it where it draws."""

from __future__ import annotations

import contextlib
import io
import os
import re
from pathlib import Path
from typing import Any

from llmft.api.errors import EnvironmentFault, RecipeError
from llmft.api.shown_text import on_one_line
from llmft.reporting.run_facts import run_facts
from llmft.system import fsio

_SIZE, _DPI = (5.5, 3.4), 200  # inches; a column of a paper is about three wide


def write_pictures(run: Path, folder: Path) -> list[Path]:
    """Draw each curve of each stage into a new folder, and return the files: STAGE-METRIC.png.

    Raises RecipeError where the folder is there already, EnvironmentFault (E206) where matplotlib
    is not installed.
    """
    refuse_existing(folder)
    stages = run_facts(run).stages
    folder = folder.absolute()
    folder.mkdir(parents=True)
    made: list[Path] = []
    try:
        # matplotlib reads a file of settings in the working folder: this one holds none.
        with contextlib.chdir(folder):
            draw = _drawing()
        for stage in stages:
            for name, points in stage.curves.items():
                if name == "epoch" or not points:
                    continue
                path = folder / f"{_file_name(stage.name)}-{_file_name(name)}.png"
                while path in made:  # names that differ in characters that no file name should have
                    path = path.with_stem(f"{path.stem}_")
                title = on_one_line(stage.name), on_one_line(name)
                fsio.write_bytes(path, draw(*title, points))
                made.append(path)
    finally:
        if not made:
            folder.rmdir()
    return made


def refuse_existing(folder: Path) -> None:
    """Raise RecipeError (E090) where something has the name of the folder that is to be made."""
    if os.path.lexists(folder):
        what = f"--png: '{folder}' is there already, and is not overwritten"
        raise RecipeError("E090", what, fix="give another folder")


def _drawing() -> Any:
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        what = "matplotlib, which draws the curves as PNG, is not installed"
        raise EnvironmentFault("E206", what, fix="pip install 'llmft[plots]'") from error

    def draw(stage: str, name: str, points: list[tuple[float, float]]) -> bytes:
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            figure = Figure(figsize=_SIZE, layout="constrained")
            axes = figure.add_subplot()
            xs, ys = zip(*points, strict=True)
            axes.plot(xs, ys, marker="." if len(points) < 40 else "", linewidth=1.2)
            # Names are of a recipe or a plugin, and may hold what matplotlib takes for a formula.
            axes.set_title(f"{stage}: {name}", fontsize=10, parse_math=False)
            axes.set_xlabel("step")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            axes.set_ylabel(name, parse_math=False)
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
            written = io.BytesIO()
            FigureCanvasAgg(figure)
            figure.savefig(written, dpi=_DPI, metadata={"Software": None})
            return written.getvalue()

    return draw


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name).strip(".") or "_"
