"""Shipped recipes with random changes, loaded one after another: never a traceback, never slow."""

from __future__ import annotations

import random
import sys
import tempfile
import time
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

from cells import ROOT

sys.path.insert(0, str(ROOT / "tests" / "recipes"))

#: Milliseconds of CPU in which 99 of 100 recipes must load.
SLOW = 50.0


@dataclass
class Fuzzed:
    """How many recipes there were and loaded, what went wrong, and how long each took."""

    recipes: int = 0
    loaded: int = 0
    wrong: list[str] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)

    def quantile(self, share: float) -> float:
        """Return the time that this share of the recipes did not exceed, in ms."""
        ordered = sorted(self.milliseconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def fuzz(count: int, seed: int, jobs: int) -> Fuzzed:
    """Load so many changed recipes in so many processes; each has its number as its seed."""
    whole = Fuzzed()
    with get_context("spawn").Pool(jobs) as pool:
        for part in pool.starmap(_part, [(seed, job, count, jobs) for job in range(jobs)]):
            whole.recipes += part.recipes
            whole.loaded += part.loaded
            whole.wrong += part.wrong
            whole.milliseconds += part.milliseconds
    return whole


def _part(seed: int, job: int, count: int, jobs: int) -> Fuzzed:
    from mutants import mutant

    from llmft.registry.registry import Registry

    texts = [path.read_text("utf-8") for path in sorted((ROOT / "recipes").glob("*.yaml"))]
    registry = Registry.discover()
    done = Fuzzed()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        for text in texts:  # what is imported and built once is no part of a recipe's time
            path.write_text(text, "utf-8")
            _load(path, registry)
        for number in range(job, count, jobs):
            text = mutant(random.Random(f"{seed}/{number}"), texts)
            path.write_bytes(text.encode("utf-8", "surrogateescape"))
            milliseconds, wrong, loaded = _timed(path, registry)
            done.milliseconds.append(milliseconds)
            done.recipes += 1
            done.loaded += loaded
            done.wrong += [f"{number}: {wrong}"] if wrong else []
    return done


def _timed(path: Path, registry: object) -> tuple[float, str, bool]:
    """Return the CPU time of loading it in ms, with what `_load` returns.

    A recipe that seems slow is loaded twice more, and the least time counts: what the garbage
    collector or a busy machine adds once is not the recipe's.
    """
    times = []
    for _ in range(3):
        started = time.process_time()
        wrong, loaded = _load(path, registry)
        times.append((time.process_time() - started) * 1e3)
        if wrong or times[-1] < SLOW:
            break
    return min(times), wrong, loaded


def _load(path: Path, registry: object) -> tuple[str, bool]:
    """Return what went wrong ('' for nothing), and whether the recipe is a good one."""
    from llmft.api.errors import LlmftError
    from llmft.cli.commands.render import render_faults
    from llmft.cli.error_codes import CODES
    from llmft.recipes.load import load_recipe

    try:
        load_recipe(path, registry)  # type: ignore[arg-type]
    except LlmftError as error:
        render_faults(error.faults, False, 80, "ascii").encode("ascii")
        unknown = [fault.code for fault in error.faults if fault.code not in CODES]
        lines = [fault for fault in error.faults if "\n" in fault.line() or not fault.place]
        return (f"unknown code {unknown[0]}" if unknown else "no place" if lines else ""), False
    except BaseException as error:  # a traceback is what this looks for
        return repr(error)[:200], False
    return "", True
