"""Answers from a finished run: the base model with a stage's trained adapter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llmft import artifacts, models
from llmft.errors import CheckpointError
from llmft.machine import device
from llmft.preparing.encoding import Encoder
from llmft.quiet import before_upstream
from llmft.reading.recipe import load_recipe
from llmft.recipe import Recipe
from llmft.registry import Registry
from llmft.saving.earlier import load_options, stage_adapter, stage_dataset
from llmft.sharing import commits


def load_run(run: Path, registry: Registry) -> Recipe:
    """Return the resolved recipe of a run; raise CheckpointError where there is none."""
    file = run / "resolved.yaml"
    if not file.is_file():
        raise CheckpointError(
            "E402", f"'{run}' is not a run folder", fix="name a folder that 'llmft run' printed"
        )
    commits.begin_as_in(run)
    return load_recipe(file, registry).recipe


def answer(
    run: Path,
    questions: Sequence[str],
    registry: Registry,
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
    from llmft.evaluating.generation import generate

    before_upstream()
    recipe = load_run(run, registry)
    folder = artifacts.stage_that_made(
        "policy", run, stage, fix="a reward model scores texts: llmft score RUN FILE"
    )
    chosen = recipe.stage(folder.name)
    adapter = stage_adapter(recipe, chosen, registry)
    dataset = stage_dataset(recipe, chosen, registry, run)
    tokenizer = models.load_tokenizer(recipe.model)
    encoder = Encoder(tokenizer, None, models.chat_format(recipe.model))
    options = load_options(recipe, adapter)
    base = models.load_base(recipe.model, options, varlen=False)
    base = base if options else base.to(device())
    model = adapter.load(base, folder / artifacts.ADAPTER) if with_adapter else base
    prompts = [encoder.prompt_ids(dataset.ask(question)) for question in questions]
    texts = generate(model, tokenizer, prompts, max_new_tokens=max_new_tokens, batch_size=8)
    return [text.strip() for text in texts]
