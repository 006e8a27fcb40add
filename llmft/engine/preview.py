"""What each stage of a job trains on, found without weights: the methods work until they need some.

A stage's alignment (or task) runs as in a run, on parts that encode its rows and have no model. It
ends where it trains, samples, or asks a weight for something.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from llmft.api import (
    Alignment,
    DataError,
    Objective,
    OnlineObjective,
    Prompt,
    PromptRow,
    Row,
    RowScores,
    SamplingParams,
    ScoredTaskConfig,
    StageResult,
)
from llmft.api.errors import Fault, LlmftError
from llmft.data.encoding_report import EncodingReport
from llmft.data.preview import PICKS, StagePreview
from llmft.engine.preflight import error_of, key_of, placed
from llmft.engine.stage import StageRunner
from llmft.engine.stage_data import Encode, Items, StageData
from llmft.engine.stage_preview import data_of, method_of, preview_of
from llmft.engine.trackers import Trackers
from llmft.evaluation.evaluation import as_answered, asked_prompts
from llmft.modeling.base_model import BaseModel
from llmft.recipes.job import BoundStage, Job
from llmft.recipes.locating import located
from llmft.recipes.metrics import scores_loss
from llmft.recipes.references import ANOTHER_RUN, row_references
from llmft.runs.upstream import dataset_in


class _Enough(BaseException):
    """A method wants what a preview does not have; what it had asked for before is known."""


def preview_job(
    job: Job,
    base: BaseModel,
    *,
    picks: int,
    only: Sequence[str] = PICKS,
    stages: Sequence[str] = (),
) -> list[StagePreview]:
    """Return what each stage trains on; loads a tokenizer and no weight.

    stages: names of those that are looked at; all where empty. Raises DataError where rows cannot
    be read or encoded at all; that too many are lost is told in the preview.
    """
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        for bound in job.written_stages:
            if not stages or bound.name in stages:
                place = Path(scratch, bound.name)
                place.mkdir()
                with located(job, bound.name):
                    found.append(preview_stage(job, bound, base, place, picks=picks, only=only))
    return found


def refuse_rows(job: Job, base: BaseModel) -> dict[str, list[str]]:
    """Return the remarks on each stage's rows, having read and encoded all of them.

    Raises one error with the faults that a run would stop at, each at its data block.
    """
    faults, remarks = list[Fault](), dict[str, list[str]]()
    with tempfile.TemporaryDirectory() as scratch:
        for number, bound in enumerate(job.written_stages):
            place = Path(scratch, bound.name)
            place.mkdir()
            try:
                if (stage := asked_stage(job, bound, base, place)) is not None:
                    found = stage.preview(picks=0)
                    if found.refused:
                        raise DataError.of([found.refused])
                    remarks[bound.name] = stage.log.notes
            except LlmftError as error:
                faults += placed(job, key_of(job, number, error), error)
    if faults:
        raise error_of(faults)
    return remarks


def preview_stage(
    job: Job,
    bound: BoundStage,
    base: BaseModel,
    folder: Path,
    *,
    picks: int,
    only: Sequence[str] = PICKS,
) -> StagePreview:
    """Return what one stage trains on. folder: an empty one, for what its method writes."""
    stage = asked_stage(job, bound, base, folder)
    if stage is None:
        what = [*upstream_here(bound), *bound.upstream, ""][0]
        return StagePreview(bound.name, method_of(bound), data_of(bound), comes_from=what)
    return stage.preview(picks=picks, only=only)


def asked_stage(job: Job, bound: BoundStage, base: BaseModel, folder: Path) -> PreviewStage | None:
    """Return a stage whose method has asked for its rows; None where another stage makes them."""
    if bound.dataset is None or upstream_here(bound):
        return None
    dataset_in(bound, folder)  # of another run, which is there
    stage = PreviewStage(job, bound, base, folder=folder)
    stage.ask_the_method()
    return stage


def upstream_here(bound: BoundStage) -> list[str]:
    """Return the stages of this recipe that make a stage's rows."""
    if bound.dataset is None:
        return []
    named = row_references(bound.dataset.config)
    return [name for name in named if not name.startswith(ANOTHER_RUN)]


class PreviewStage(StageRunner):
    """Lets a method ask for its rows, and keeps them. refused: why a run would stop here."""

    def __init__(self, job: Job, bound: BoundStage, base: BaseModel, *, folder: Path) -> None:
        self.items: Sequence[Any] | None = None
        self.refused: Fault | None = None
        super().__init__(
            job, bound, base, run=folder.parent, folder=folder, dataset=bound.dataset,
            trackers=Trackers([]),
        )  # fmt: skip

    def _parts(self) -> tuple[Any, Any, Any]:
        data = PreviewData(self.bound, self.dataset, self.base, self.seed, self.log)
        return PreviewModels(self.bound, self.base), data, PreviewSampler(data)

    def ask_the_method(self) -> None:
        """Let the stage's method work until it trains, samples, or needs a weight."""
        work: Any = self.work
        try:
            if isinstance(work, Alignment):
                work.train(self)
            else:
                work.run(self)
        except _Enough:
            pass
        except LlmftError as error:  # what the method finds wrong with its rows
            if self.data.trained_on is None:
                raise
            self.refused = error.faults[0]
        except Exception:  # a plugin's own code, met with a model that has no weights
            if self.data.trained_on is None:
                self.log.note(f"'{self.work.method}' asks for the model before it encodes its rows")

    def preview(self, *, picks: int, only: Sequence[str] = PICKS) -> StagePreview:
        """Return what the method asked for; where it asked for nothing, the rows as they are."""
        if self.data.trained_on is None:
            self.data.encode_as(self.bound.dataset, self.work)
        made = self.data.trained_on
        refused = self.refused or self.data.refused
        return preview_of(self, made, self.items, picks=picks, only=only, refused=refused)

    def fit(self, items: Sequence[Any], objective: Objective) -> StageResult:
        """Keep the items: they are what is trained on."""
        self.items = items
        raise _Enough

    def fit_online(self, prompts: Sequence[Any], objective: OnlineObjective) -> StageResult:
        """Keep the prompts."""
        self.items = prompts
        raise _Enough

    def row_scores(self, *, base: bool = False) -> RowScores:
        """Encode the rows that a task would have scored, and end the preview."""
        asked, rows = self.spec.task, self.data.rows()
        assert isinstance(asked, ScoredTaskConfig)  # no other task asks
        if scores_loss(asked):
            self.data.encode_scored(as_answered(rows))
            raise _Enough
        self.sampler.generate(asked_prompts(rows), asked.max_new_tokens)
        raise _Enough

    def stage_folder(self, name: str) -> Path:
        """Return the folder of an earlier stage: there is none yet."""
        raise _Enough


class PreviewData(StageData):
    """The stage's rows, all of them, also where a run would stop because too many are lost."""

    streams = False
    refused: Fault | None = None
    _asked: Sequence[Row] | None = None

    def _encoded(
        self, rows: Sequence[Row], encode: Encode[Items]
    ) -> tuple[Sequence[Items], EncodingReport]:
        asked = self.train
        rule = "drop" if asked.on_long_row == "fail" else asked.on_long_row
        lenient = asked.model_copy(update={"on_long_row": rule})
        items, report = encode(self.encoder, rows, lenient, refuse=False)
        try:
            if rule != asked.on_long_row and report.counts["dropped, too long"]:
                encode(self.encoder, rows, asked, refuse=True)
            report.refuse_losses(asked)
        except DataError as error:
            self.refused = error.faults[0]
        return items, report

    def encode_asked(self, prompts: Sequence[PromptRow], max_new_tokens: int) -> None:
        """Encode what a task asks of the training rows."""
        self._asked = prompts
        self.encode_prompts(prompts, max_new_tokens)

    def encode_scored(self, rows: Sequence[Row]) -> None:
        """Encode what a task takes the loss of, made of the training rows."""
        self._asked = rows
        self.encode(rows)

    def _is_of_training(self, rows: Sequence[Row]) -> bool:
        return rows is self._asked or super()._is_of_training(rows)

    def encode_as(self, dataset: Any, work: Any) -> None:
        """Encode the training rows by their kind, where no method asked for them."""
        kind, rows = dataset.row_kind(), self.rows()
        if kind == "preference":
            self.encode_pairs(rows)
        elif kind == "unpaired":
            self.encode_unpaired(rows)
        elif kind == "classification":
            self.encode_classification(rows)
        elif kind == "prompt" or not isinstance(work, Alignment):
            self.encode_prompts(rows, work.max_new_tokens())
        else:
            self.encode(rows)


class PreviewModels:
    """A tokenizer, and a model that has no weights: whoever asks for one ends the preview."""

    def __init__(self, bound: BoundStage, base: BaseModel) -> None:
        self.base, self.adapter = base, bound.model_adapter
        self.starts_as_reference = False

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self.base.tokenizer

    @property
    def model(self) -> Any:
        """A model without layers."""
        return _NoWeights()

    @property
    def shares_prompts(self) -> bool:
        """Whether a method may plan to compute a prompt once for two answers."""
        return bool(self.adapter and self.adapter.supports_shared_prompt)

    def precision(self) -> AbstractContextManager[Any]:
        """Return a context that changes nothing."""
        return nullcontext()

    def reference(self) -> AbstractContextManager[Any]:
        """End the preview."""
        raise _Enough

    def reference_model(self) -> Any:
        """End the preview."""
        raise _Enough

    def load_stage(self, name: str) -> Any:
        """End the preview."""
        raise _Enough


class _NoWeights(torch.nn.Module):
    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            raise _Enough from None

    def forward(self, *args: Any, **options: Any) -> Any:
        raise _Enough


class PreviewSampler:
    """Encodes the prompts that a task would have answered, and ends the preview."""

    def __init__(self, data: PreviewData) -> None:
        self.data = data

    def sample(
        self, prompts: Sequence[Prompt], params: SamplingParams, *, seed: int = 0
    ) -> list[list[str]]:
        """Encode the prompts as `sample` does, then end the preview."""
        self._ask(prompts, params.max_new_tokens)
        raise _Enough

    def generate(
        self, prompts: Sequence[Prompt], max_new_tokens: int, *, model: Any = None
    ) -> list[str]:
        """Encode the prompts, then end the preview."""
        self._ask(prompts, max_new_tokens)
        raise _Enough

    def decode(self, prompts: Sequence[Sequence[int]], params: Any, **options: Any) -> Any:
        """End the preview."""
        raise _Enough

    def _ask(self, prompts: Sequence[Prompt], max_new_tokens: int) -> None:
        rows = self.data.rows()
        asked = [PromptRow(prompt) for prompt in prompts]
        if len(asked) == len(rows):
            asked = [
                PromptRow(prompt.prompt, getattr(row, "answers", ()), row.origin)
                for prompt, row in zip(asked, rows, strict=True)
            ]
        self.data.encode_asked(asked, max_new_tokens)
