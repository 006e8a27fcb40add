"""Answers from a finished run: the base model with a stage's trained adapter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmft.api.errors import CheckpointError, DataError
from llmft.data.encoding import Encoder
from llmft.modeling.base_model import BaseModel, refuse_not_finite
from llmft.recipes.binding import RESOLVED
from llmft.recipes.job import BoundStage, Job
from llmft.recipes.load import load_recipe
from llmft.registry.registry import Registry
from llmft.runs import artifacts
from llmft.runs.provenance import refuse_changed_base
from llmft.runs.upstream import dataset_in, load_options, merged, merged_stages, stage_model
from llmft.system import hub_commits
from llmft.system.machine import device
from llmft.system.plain_files import NOT_OURS, refuse_links_below
from llmft.system.quiet import before_upstream


def load_run(run: Path, registry: Registry) -> Job:
    """Return the job of a run, from its resolved recipe; CheckpointError where there is none."""
    file = run / RESOLVED
    if not file.is_file():
        raise CheckpointError(
            "E402", f"'{run}' is not a run folder", fix="name a folder that 'llmft run' printed"
        )
    refuse_links_below(run, NOT_OURS)
    hub_commits.begin_as_in(run)
    job = load_recipe(file, registry)
    refuse_changed_base(run, BaseModel(job.recipe.model))
    return job


def answer(
    job: Job,
    run: Path,
    questions: Sequence[str],
    *,
    stage: str | None = None,
    max_new_tokens: int = 64,
    with_adapter: bool = True,
) -> list[str]:
    """Return the run's answer to each question, asked as its stage's data set asks.

    stage: default: the last finished one that made a policy. with_adapter: False asks the base
        model alone.
    Raises CheckpointError where no stage made a policy.
    """
    from llmft.evaluation.generation import generate

    before_upstream()
    folder = artifacts.stage_that_made(
        "policy", run, stage, fix="a reward model scores texts: llmft score RUN FILE"
    )
    bound = job.stage(folder.name)
    base = BaseModel(job.recipe.model)
    model = model_of_run(job, bound, base, folder, varlen=False, with_adapter=with_adapter)
    dataset = dataset_in(bound, run)
    encoder = Encoder(base.tokenizer, None, base.chat_format)
    asked = [dataset.ask(question) if dataset else question for question in questions]
    prompts = [encoder.prompt_ids(question) for question in asked]
    texts = generate(
        model,
        base.tokenizer,
        prompts,
        max_new_tokens=max_new_tokens,
        batch_size=8,
        on_cut=_refuse_cut,
    )
    return [text.strip() for text in texts]


def model_of_run(
    job: Job,
    bound: BoundStage,
    base: BaseModel,
    folder: Path,
    *,
    varlen: bool,
    with_adapter: bool = True,
    whole: bool = False,
) -> Any:
    """Return the model that a finished stage made, on the device, frozen.

    folder: the stage's. with_adapter: False gives the base alone. whole: with what the alignment
    added, such as a reward model's head.
    """
    options = load_options(job.recipe, bound.model_adapter)
    model = base.load(options, varlen=varlen)
    model = model if options else model.to(device())
    refuse_not_finite(model, job.recipe.model)
    if not with_adapter:
        return model
    model = merged(model, merged_stages(bound, folder.parent.parent))
    return stage_model(bound, model, folder, whole=whole)


def _refuse_cut(prompts: int) -> None:
    raise DataError(
        "E106",
        "a question is longer than the model's positions, and its start would be cut",
        fix="ask a shorter one",
    )
