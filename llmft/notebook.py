"""Recipes from Python, for notebooks and scripts: build, validate, run, read the results.

```python
from llmft import notebook

recipe = notebook.load({"recipe": 1, "name": "trivia", "model": {"path": "embedded:model"},
                        "stages": [...]})
results = notebook.run(recipe)
results.stages["sft"].after
```

All of it is what the command line does: the same checks, the same run folders. Importing it imports
no torch. A mistake is an `LlmftError`, whose text is what the command line prints.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from llmft.api import LlmftError, Progress, RecipeError, RunInfo, Tracker, TrackerConfig
from llmft.api.errors import Fault

__all__ = ["LoadedRecipe", "Results", "Stage", "load", "results", "run", "trust", "validate"]

Source = str | Path | Mapping[str, Any] | BaseModel
Overrides = Mapping[str, Any] | Sequence[str]

_TEMPORARY = "llmft-recipe-"


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe that passed every check.

    path: its file; one that was built in Python has a temporary one, which `save` copies.
    overrides: what was changed in it, as `--set` takes it. text: the file's text. resolved: the
    recipe with every default written out, as plain data.
    """

    path: Path
    overrides: tuple[str, ...]
    text: str
    resolved: Mapping[str, Any]

    @property
    def name(self) -> str:
        """What its runs are called."""
        return str(self.resolved["name"])

    def save(self, path: str | Path) -> Path:
        """Write the recipe's text into a new file, for `llmft run`, and return its path.

        Raises FileExistsError where the file is there. Overrides are not part of the text.
        """
        with Path(path).open("x", encoding="utf-8") as file:
            file.write(self.text)
        return Path(path)


@dataclass(frozen=True)
class Stage:
    """What a finished stage made.

    produces: policy, reward_model, or what a task makes. before, after: its scores before and after
    training. metrics: the last ones of training, or a task's. steps: optimiser steps.
    """

    name: str
    folder: Path
    produces: str
    steps: int
    metrics: Mapping[str, float]
    before: Mapping[str, float]
    after: Mapping[str, float]

    @property
    def history(self) -> list[dict[str, Any]]:
        """Every logged step: a list that `pandas.DataFrame` takes. Needs the tracker `jsonl`."""
        return _lines(self.folder / "metrics.jsonl")

    @property
    def samples(self) -> list[dict[str, Any]]:
        """Answers of the evaluations before and after training."""
        return _lines(self.folder / "samples.jsonl")

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows that a task wrote; empty for a stage that trains."""
        return _lines(self.folder / "rows.jsonl")


@dataclass(frozen=True)
class Results:
    """A run's folder, and its finished stages by name, in their order."""

    folder: Path
    stages: Mapping[str, Stage]

    def scores(self) -> list[dict[str, Any]]:
        """Return each score before and after, for `pandas.DataFrame`."""
        return [
            {
                "stage": stage.name,
                "metric": metric,
                "before": stage.before.get(metric),
                "after": stage.after[metric],
            }
            for stage in self.stages.values()
            for metric in stage.after
        ]

    def generate(
        self,
        questions: Sequence[str],
        *,
        stage: str | None = None,
        max_new_tokens: int = 64,
        adapter: bool = True,
    ) -> list[str]:
        """Return the trained model's answer to each question.

        stage: default: the last that made a policy. adapter: False asks the base model alone.
        """
        from llmft.cli.commands.generate import answers

        with _errors_as_printed():
            found = answers(str(self.folder), questions, stage, max_new_tokens, adapter=adapter)
        return [item["answer"] for item in found]


def load(source: Source, overrides: Overrides = ()) -> LoadedRecipe:
    """Return a checked recipe.

    source: a mapping, which may hold settings as pydantic models; or a file's path; or the name of
    a shipped recipe, such as 'quickstart'. overrides: {"stages.sft.train.max_steps": 20},
    or a list of texts as `--set` takes them.
    Raises one LlmftError with every fault, each with its place.
    """
    from llmft.cli.commands import shipped
    from llmft.recipes.load import load_recipe
    from llmft.registry.registry import Registry

    with _errors_as_printed():
        changes = _as_texts(overrides)
        built = isinstance(source, Mapping | BaseModel)
        path = _written(source) if built else shipped.find(str(source))
        loaded = load_recipe(path, Registry.discover(), changes)
    return LoadedRecipe(path, changes, loaded.source.text, loaded.recipe.resolved())


def validate(recipe: LoadedRecipe | Source, *, model: bool = False) -> None:
    """Raise one LlmftError with every fault of a recipe, and return where there is none.

    model: check it against its model's config and files too, which imports torch.
    """
    from llmft.cli.commands.validate import check

    recipe = _loaded(recipe)
    with _errors_as_printed():
        check([str(recipe.path)], recipe.overrides, model=model)


def trust(*files: str | Path) -> None:
    """Let files of your own code run in this process, as `--trust file:FILE` does.

    A recipe alone never runs code: its `python` rows and rewards need this. FILE@SHA256 trusts the
    file only while it is unchanged.
    """
    from llmft.system import trust as trusting

    trusting.grant([f"file:{file}" for file in files])


def run(
    recipe: LoadedRecipe | Source,
    *,
    on_progress: Callable[[Progress], None] | None = None,
    quiet: bool = False,
    smoke: bool = False,
    resume: str | Path | None = None,
    until: str | None = None,
) -> Results:
    """Run a recipe, and return its results.

    on_progress: called often, with the stage, the phase, how far it has come, and new metrics; an
    error in it is told once, and ends nothing. quiet: the recipe's console tracker prints nothing.
    smoke: a tiny random model and a few rows, in seconds. resume: the folder of a run to go on
    with. until: the name of the last stage to run.
    Raises LlmftError; what was finished by then stays on disk. The Stop button of a notebook stops
    a run after its step, with a checkpoint.
    """
    from llmft.cli.commands.run import run_recipe_file

    recipe = _loaded(recipe)
    listener = _Listener(on_progress)
    with _errors_as_printed():
        run_recipe_file(
            str(recipe.path), recipe.overrides, quiet=quiet, as_json=False, smoke=smoke,
            resume=resume is not None, run_folder=str(resume) if resume else None, last=until,
            listeners=(listener,),
        )  # fmt: skip
    folder = listener.folder or resume
    assert folder is not None, "a new run has a folder"
    return results(folder)


def results(folder: str | Path) -> Results:
    """Return what the finished stages of a run made.

    folder: one that `run` or `llmft run` made. Raises CheckpointError where it is none, or damaged.
    """
    from llmft.runs import artifacts
    from llmft.system import fsio
    from llmft.system.plain_files import NOT_OURS, refuse_links_below

    place = Path(folder).resolve()
    with _errors_as_printed():
        artifacts.stage_folder(place, None)  # refuses what is no run, or has nothing finished
        refuse_links_below(place, NOT_OURS)
        folders = [place / "stages" / name for name in artifacts.stages_of(place)]
        with fsio.as_a_run_wrote(place, artifacts.PUT_BACK):
            found = [
                _stage(folder, artifacts.result_of(folder))
                for folder in folders
                if (folder / artifacts.RESULT).is_file()
            ]
    return Results(place, {stage.name: stage for stage in found})


class _Listener(Tracker[TrackerConfig]):
    """Tells a function of Python how a run goes, and remembers the run's folder."""

    method = "notebook"
    contacts = ""

    def __init__(self, on_progress: Callable[[Progress], None] | None) -> None:
        super().__init__(TrackerConfig(method=self.method))
        self.folder: Path | None = None
        self._on_progress = on_progress
        # While a run goes on, what is printed goes into its log; but not what this function prints.
        self._streams = sys.stdout, sys.stderr

    def run_started(self, run: RunInfo) -> None:
        self.folder = run.folder

    def progress(self, progress: Progress) -> None:
        if self._on_progress is not None:
            out, err = self._streams
            with redirect_stdout(out), redirect_stderr(err):
                self._on_progress(progress)


def _loaded(recipe: LoadedRecipe | Source) -> LoadedRecipe:
    return recipe if isinstance(recipe, LoadedRecipe) else load(recipe)


def _stage(folder: Path, made: Mapping[str, Any]) -> Stage:
    told = {key: made[key] for key in ("produces", "steps", "metrics", "before", "after")}
    return Stage(folder.name, folder, **told)


def _lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects in a file of a run; CheckpointError where it is none, or damaged."""
    from llmft.runs.artifacts import PUT_BACK
    from llmft.system import fsio

    with _errors_as_printed():
        return fsio.read_jsonl(path, PUT_BACK) if path.is_file() else []


def _as_texts(overrides: Overrides) -> tuple[str, ...]:
    if isinstance(overrides, str):
        return (overrides,)
    if isinstance(overrides, Mapping):
        return tuple(f"{key}={json.dumps(_plain(value))}" for key, value in overrides.items())
    return tuple(overrides)


def _written(source: Any) -> Path:
    """Return a temporary file that holds a recipe which was built in Python."""
    from llmft.runs.run_folder import as_yaml

    text = as_yaml(_plain(source))
    # It stays for as long as Python runs: a smoke run reads it again.
    folder = Path(tempfile.mkdtemp(prefix=_TEMPORARY))
    path = folder / "recipe.yaml"
    path.write_text(text, "utf-8")
    return path


def _plain(value: Any, path: str = "") -> Any:
    """Return a value as YAML can have it; RecipeError where it cannot be part of a recipe."""
    if isinstance(value, BaseModel):  # what was not set keeps the recipe's default
        return _plain(value.model_dump(mode="json", exclude_unset=True), path)
    if isinstance(value, Mapping):
        inner = {str(key): f"{path}.{key}" if path else str(key) for key in value}
        return {str(key): _plain(one, inner[str(key)]) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one, f"{path}[{number}]") for number, one in enumerate(value)]
    if isinstance(value, Path):
        return str(value)
    # Subclasses, such as numpy's float64 and enumerations of texts, become what they stand for.
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value) if kind is not str else str.__str__(value)
    if value is None:
        return None
    raise RecipeError(
        "E022",
        f"a {type(value).__name__} cannot be part of a recipe",
        fix="give a text, a number, true or false, a list or a mapping",
        path=path,
    )


@contextmanager
def _errors_as_printed() -> Iterator[None]:
    """Let an error's text be what the command line prints, and a notebook show no traceback."""
    try:
        yield
    except LlmftError as error:
        from llmft.cli.commands.render import render_faults

        error.faults = tuple(_of_built(fault) for fault in error.faults)
        text = render_faults(error.faults, width=120).rstrip("\n")
        error.args = (text,)
        # IPython asks an exception for this before it makes a traceback.
        error._render_traceback_ = text.splitlines  # type: ignore[attr-defined]
        raise


def _of_built(fault: Fault) -> Fault:
    """Return a fault that calls the temporary file of a recipe by what the user made it from."""
    place = fault.place
    if place is None or not Path(place.file).parent.name.startswith(_TEMPORARY):
        return fault
    return replace(fault, place=replace(place, file="<recipe>"))
