"""llmft in a process that forks, with all imported and built that runs share: what ours.py kills.

server.py runs it: `warm` saves half the time of a run, `install` prepares a fault, `main` runs.
"""

from __future__ import annotations

import gc
import importlib
import os
import pkgutil
import signal
import sys
from pathlib import Path
from typing import Any

import server
from faults import Events
from faults import install as install_fault
from server import main

__all__ = ["install", "main", "warm"]

ROOT = Path(__file__).parents[2]
# What a run imports as it goes on, beside llmft's own modules.
LATER = (
    "peft.tuners.lora.bnb", "peft.utils.transformers_weight_conversion",
    "transformers.integrations.bitsandbytes", "transformers.optimization",
    "transformers.trainer_pt_utils", "transformers.trainer_utils", "typer.main",
)  # fmt: skip


def warm() -> None:
    """Import what a run imports, and build what a recipe is read by; nothing is run here."""
    from llmft.recipes.load import load_recipe
    from llmft.registry.registry import Registry

    server.imports()
    for name in _modules():
        importlib.import_module(name)
    registry = Registry.discover()
    for path in sorted((ROOT / "recipes").glob("*_quick*.yaml")):
        load_recipe(path, registry)
    gc.collect()
    gc.freeze()  # a collection in a child would copy every page it looks at


def _modules() -> list[str]:
    builtin = [path.name for path in sorted((ROOT / "plugins").glob("llmft_*"))]
    found = list(LATER)
    for package in ("llmft", *builtin):
        paths = importlib.import_module(package).__path__
        names = [module.name for module in pkgutil.walk_packages(paths, f"{package}.")]
        found += [name for name in names if "wandb" not in name and "__main__" not in name]
    return [name for name in found if name not in sys.modules]


def install(kind: str, **fault: Any) -> Any:
    """Prepare a fault: those of faults.py, and 'places', a SIGKILL as a function is called."""
    if kind == "places":
        return _kill_in(fault["places"], fault.get("at", 0))
    return install_fault(kind=kind, **fault)


def _kill_in(places: dict[str, str], at: int) -> Events:
    """Count the calls of functions, by the names of their places, and die in the at-th of all."""
    calls = Events("count", 0)
    for name, where in places.items():
        module, _, path = where.partition(":")
        owner: Any = importlib.import_module(module)
        *parents, attribute = path.split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        real = getattr(owner, attribute)

        def counted(*args: Any, _real: Any = real, _name: str = name, **options: Any) -> Any:
            calls.meets(_name)
            if len(calls.names) == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return _real(*args, **options)

        setattr(owner, attribute, counted)
    return calls
