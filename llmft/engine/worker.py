"""A process that is not the first of its launch: it trains with the first one, and leaves nothing.

The first process reads the recipe, owns the run folder and its lock, does the tasks, scores, saves
and tells the trackers. The others load the same model and rows, and take their part of each step.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from llmft.api.errors import DataError, EnvironmentFault
from llmft.engine.session import Engine
from llmft.engine.stage import StageRunner
from llmft.engine.trackers import Trackers
from llmft.modeling.base_model import BaseModel
from llmft.recipes.binding import RESOLVED
from llmft.recipes.load import load_recipe
from llmft.registry.registry import Registry
from llmft.runs.run_folder import RUN
from llmft.runs.upstream import dataset_in
from llmft.system import distributed, hub_commits
from llmft.system.launcher import Order, launch
from llmft.system.quiet import captured_output
from llmft.system.signals import leave_on_signal


def follow() -> None:
    """Train each stage that the first process trains, until it says that there is no more."""
    nothing: Order | None = None
    with (
        distributed.joined(launch()),
        leave_on_signal(),
        tempfile.TemporaryDirectory(prefix="llmft-") as own,
    ):
        while (order := distributed.on_rank_zero(lambda: nothing)) is not None:
            folder = Path(own) / order.stage
            folder.mkdir()
            _train(order, folder)


def _train(order: Order, folder: Path) -> None:
    here, run = launch(), Path(order.run)
    if not (run / RUN).is_file():
        raise EnvironmentFault(
            "E210",
            f"the run folder '{run}' is not there",
            fix="give an --output-dir that all machines of the run share",
        )
    hub_commits.begin_as_in(run)
    with captured_output(run / f"log-{here.rank}.txt"):
        job = load_recipe(run / RESOLVED, Registry.discover())
        bound = job.stage(order.stage)
        context = StageRunner(
            job,
            bound,
            BaseModel(job.recipe.model),
            run=run,
            folder=folder,
            dataset=dataset_in(bound, run),
            trackers=Trackers([]),
        )
        if context.data.digests != order.rows:
            raise DataError(
                "E113",
                f"the rows of '{bound.name}' are not those of the first process",
                fix="give all machines of the run the same files",
            )
        manager = job.hooks()
        engine = Engine()
        manager.register(engine)
        try:
            manager.hook.llmft_run_stage(stage=bound.spec, context=context)
        finally:
            manager.unregister(engine)
