"""Answers from a finished run: the base model with a stage's trained adapter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmft.api import Alignment, Prompt
from llmft.api.errors import CheckpointError, DataError
from llmft.inference.asking import AS_TRAINED, Asking, in_turns
from llmft.modeling.base_model import BaseModel, refuse_not_finite
from llmft.recipes.binding import RESOLVED
from llmft.recipes.job import BoundStage, Job
from llmft.recipes.load import load_recipe
from llmft.registry.registry import Registry
from llmft.runs import artifacts
from llmft.runs.provenance import refuse_changed_base
from llmft.runs.upstream import (
    dataset_in,
    load_options,
    merged,
    merged_stages,
    stage_model,
    start_adapter,
)
from llmft.system import hub_commits
from llmft.system.machine import device
from llmft.system.plain_files import NOT_OURS, refuse_links_below
from llmft.system.quiet import before_upstream
from llmft.training.checkpoints import FOLDER as CHECKPOINTS
from llmft.training.checkpoints import Checkpoints


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
    step: int | None = None,
    asking: Asking = AS_TRAINED,
) -> list[str]:
    """Return the run's answer to each question, asked as its stage's data set asks.

    stage: default: the last finished one that made a policy. with_adapter: False asks the base
        model alone. step: use the stage's checkpoint after so many steps, for which it need not be
        finished. asking: a system text, several turns, or no prompt template.
    Raises RecipeError where the stage cannot be asked so, and CheckpointError where no stage made a
    policy, or has no such checkpoint.
    """
    from llmft.evaluation.generation import generate

    asking.check()
    before_upstream()
    if step is None:
        folder = artifacts.stage_that_made(
            "policy",
            run,
            stage,
            fix="what it made scores texts: llmft score RUN FILE",
        )
    else:
        folder = stage_with_checkpoint(job, run, "policy", stage, step)
    bound = job.stage(folder.name)
    base = BaseModel(job.recipe.model)
    dataset, encoder = dataset_in(bound, run), base.encoder()
    asked = [asking.prompt(dataset, question) for question in questions]
    model = model_of_run(
        job, bound, base, folder, varlen=False, with_adapter=with_adapter, step=step
    )

    def answers(prompts: Sequence[Prompt]) -> list[str]:
        texts = generate(
            model,
            base.tokenizer,
            [encoder.prompt_ids(prompt) for prompt in prompts],
            max_new_tokens=max_new_tokens,
            batch_size=8,
            on_cut=_refuse_cut,
        )
        return [text.strip() for text in texts]

    if asking.turns:
        return in_turns(asking, dataset, questions, lambda prompt: answers([prompt])[0])
    return answers(asked)


def model_of_run(
    job: Job,
    bound: BoundStage,
    base: BaseModel,
    folder: Path,
    *,
    varlen: bool,
    with_adapter: bool = True,
    whole: bool = False,
    step: int | None = None,
    loaded: Any = None,
) -> Any:
    """Return the model that a finished stage made, on the device, frozen.

    folder: the stage's. with_adapter: False gives the base alone. whole: with what the alignment
    added, such as a reward model's head. step: as it was at a checkpoint, finished or not.
    loaded: the base, where it is on the device already; it becomes the model.
    """
    model = loaded
    if model is None:
        options = load_options(job.recipe, bound.model_adapter)
        model = base.load(options, varlen=varlen)
        model = model if options else model.to(device())
        refuse_not_finite(model, base.source)
    if not with_adapter:
        return model
    model = merged(model, merged_stages(bound, folder.parent.parent))
    if step is not None:
        return _at_checkpoint(bound, model, folder, step)
    return stage_model(bound, model, folder / artifacts.ADAPTER, whole=whole)


def stage_with_checkpoint(job: Job, run: Path, kind: str, stage: str | None, step: int) -> Path:
    """Return the folder of the stage that makes this kind and has a checkpoint after a step.

    stage: default: the last that does. Raises CheckpointError where there is none.
    """
    found: dict[str, list[int]] = {}
    for bound in job.stages:
        folder = run / "stages" / bound.name
        if bound.work.produces == kind and stage in (None, bound.name):
            found[bound.name] = Checkpoints(folder / CHECKPOINTS, run.name, {}).steps()
    having = [name for name, steps in found.items() if step in steps]
    if having:
        return run / "stages" / having[-1]
    there = [f"{name}: {', '.join(map(str, reversed(s)))}" for name, s in found.items() if s]
    raise CheckpointError(
        "E402",
        f"'{run}' has no checkpoint after step {step}"
        + (f" of the stage '{stage}'" if stage else ""),
        fix=f"name one that is there ({'; '.join(there)})"
        if there
        else "save some: train.save_strategy",
    )


def _at_checkpoint(bound: BoundStage, base: Any, folder: Path, step: int) -> Any:
    """Return a stage's model, frozen, with the weights of its checkpoint after a step."""
    from llmft.modeling.precision import train_in_float32
    from llmft.training.training_state import restore_weights

    run = folder.parent.parent
    # The checkpoint has all that is trained: of an adapter from elsewhere nothing is needed.
    start = start_adapter(bound, run) if bound.continued else None
    model = stage_model(bound, base, start)
    assert isinstance(bound.work, Alignment)  # a task has no checkpoints
    bound.work.recall(folder)
    bound.work.extend(model)
    adapter = bound.model_adapter
    if adapter is not None and adapter.trains_in_float32():
        train_in_float32(model)
    tensors = Checkpoints(folder / CHECKPOINTS, run.name, {}).tensors(step)
    restore_weights(model, tensors)
    return model.requires_grad_(False).eval()


def _refuse_cut(prompts: int) -> None:
    raise DataError(
        "E106",
        "a question is longer than the model's positions, and its start would be cut",
        fix="ask a shorter one",
    )
