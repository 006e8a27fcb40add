"""`llmft run RECIPE`."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmft.api import Tracker
from llmft.api.errors import RecipeError
from llmft.api.shown_text import escaped
from llmft.cli.commands import shipped
from llmft.recipes.job import Job
from llmft.recipes.load import load_recipe
from llmft.registry.registry import Registry
from llmft.runs.accepted import NOTHING, Accepted
from llmft.system import launcher
from llmft.system.nearest import did_you_mean
from llmft.system.quiet import captured_output
from llmft.system.terminal import terminal_width, wrapped

if TYPE_CHECKING:
    from llmft.modeling.base_model import BaseModel


def run_recipe_file(
    recipe: str,
    overrides: Sequence[str],
    *,
    quiet: bool,
    as_json: bool,
    resume: bool = False,
    resume_auto: bool = False,
    run_folder: str | None = None,
    smoke: bool = False,
    first: str | None = None,
    last: str | None = None,
    accepted: Accepted = NOTHING,
    listeners: Sequence[Tracker[Any]] = (),
    copies_to: str | None = None,
    copied_at: str | None = None,
) -> dict[str, Any] | str:
    """Run a recipe, and return how it ended: as data, or nothing where trackers have told it.

    resume_auto: go on with the recipe's unfinished run where there is one; so it is too where a
    launcher has started the job again.
    run_folder: the run that is resumed; default: the newest unfinished one of the recipe's name.
    smoke: run it with a tiny random model and a few rows, under a temporary folder.
    first: run this stage and those after it again. last: stop after this stage.
    listeners: who is told beside the recipe's trackers. copies_to: the address to which the run is
    copied while it trains. copied_at: the address of a copy that it goes on from, on a machine
    that does not have the run.
    """
    resume = resume or first is not None
    _refuse_clashing_options(resume, run_folder, smoke, copies_to, copied_at)
    launcher.refuse_foreign()
    if launcher.launch().rank:
        from llmft.engine.worker import follow

        follow()
        return ""
    # Every mistake that can be found without torch is found before torch is waited for.
    job = load_recipe(shipped.find(recipe), Registry.discover(), overrides)
    _refuse_unknown_stages(job, first, last)
    if (resume_auto or launcher.restarted()) and not (resume or smoke):
        from llmft.runs.resuming import unfinished_run

        resume = unfinished_run(job) is not None
        if not resume and copies_to and not copied_at:
            copied_at = _where_copied(copies_to)
    if copied_at and not resume:
        with told_elsewhere(quiet, as_json):
            run_folder, resume = _fetched(job, copied_at), True
    with told_elsewhere(quiet, as_json), _leading():
        if resume:
            from llmft.engine.session import Part, resume_recipe

            place = Path(run_folder) if run_folder else None
            summary = resume_recipe(
                job, place, Part(first, last), accepted, listeners=listeners, copies_to=copies_to
            )
        else:
            from llmft.engine.session import Part, run_recipe

            job, base = _smoke(job) if smoke else (job, None)
            part = Part(first, last)
            summary = run_recipe(
                job, part, base=base, smoke=smoke, listeners=listeners, copies_to=copies_to
            )
    already = resume and summary.already_finished
    if not as_json:
        return f"already finished: {summary.folder}" if already and not quiet else ""
    return {
        "run_id": summary.run_id,
        "folder": str(summary.folder),
        "seconds": summary.seconds,
        "stages": {name: asdict(result) for name, result in summary.stages.items()},
        **({"smoke": True} if smoke else {}),
        **({"already_finished": True} if already else {}),
    }


def _where_copied(address: str) -> str | None:
    """Return an address where a copy of a run is there, else None."""
    from llmft.hub.run_copier import holds_a_run

    return address if holds_a_run(address) else None


def _fetched(job: Job, address: str) -> str:
    """Bring the copy of a run of the recipe to this machine, and return its folder."""
    from llmft.hub.run_copier import fetch

    def note(text: str) -> None:
        print(escaped(f"note: {text}"), flush=True)

    parent = Path(job.recipe.output_dir) / job.recipe.name
    return str(fetch(address, parent, job.recipe.name, note))


def _refuse_clashing_options(
    resume: bool,
    run_folder: str | None,
    smoke: bool,
    copies_to: str | None = None,
    copied_at: str | None = None,
) -> None:
    if smoke and (copies_to or copied_at):
        what = "--smoke trains nothing that is worth a copy"
        raise RecipeError("E090", what, fix="leave out --checkpoints-to and --resume-from")
    if copied_at and resume:
        what = "--resume-from begins with a copy, and --resume and --from with a run that is here"
        raise RecipeError("E090", what, fix="keep one")
    if smoke and resume:
        raise RecipeError(
            "E090", "--smoke and --resume or --from exclude each other", fix="keep one"
        )
    if run_folder and not resume:
        raise RecipeError(
            "E090",
            f"a new run makes its own folder, so '{run_folder}' cannot be used",
            fix="add --resume to continue that run, or use --output-dir to choose where run"
            " folders are made",
        )


def _refuse_unknown_stages(job: Job, first: str | None, last: str | None) -> None:
    names = [stage.name for stage in job.recipe.stages]
    for option, name in (("--from", first), ("--until", last)):
        if name is not None and name not in names:
            what = f"{option}: no stage is called '{name}' (have: {', '.join(names)})"
            raise RecipeError("E030", what, fix=did_you_mean(name, names) or "name one of these")
    if first and last and names.index(last) < names.index(first):
        what = f"--until '{last}' comes before --from '{first}'"
        raise RecipeError("E090", what, fix="swap the two stages")


def _smoke(job: Job) -> tuple[Job, BaseModel]:
    """Return the recipe's smoke run and its tiny model.

    They lie under --output-dir where that was given, else in a new temporary folder.
    """
    from llmft.smoke.smoke import WARNING, smoke_recipe

    print(WARNING, flush=True)
    asked = any(override.startswith("output_dir=") for override in job.source.overrides)
    if asked:
        Path(job.recipe.output_dir).mkdir(parents=True, exist_ok=True)
    folder = tempfile.mkdtemp(prefix="llmft-smoke-", dir=job.recipe.output_dir if asked else None)
    with captured_output(Path(folder) / "log.txt"):  # upstream's chatter
        small, tiny, notes = smoke_recipe(job, Path(folder))
    for note in notes:
        for line in wrapped(escaped(f"note: {note}"), terminal_width(sys.stdout)):
            print(line, flush=True)
    return small, tiny


@contextmanager
def _leading() -> Iterator[None]:
    """Let the other processes of a launcher train what this first one does, for the block."""
    if (here := launcher.launch()).count == 1:
        yield
        return
    from llmft.system import distributed

    with distributed.joined(here):
        yield
        distributed.on_rank_zero(lambda: None)  # no more orders


@contextmanager
def told_elsewhere(quiet: bool, as_json: bool) -> Iterator[None]:
    """Keep standard output free for a JSON answer, or print nothing for --quiet."""
    if quiet:
        with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
            yield
    elif as_json:
        with redirect_stdout(sys.stderr):
            yield
    else:
        yield
