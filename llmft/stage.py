"""A running stage: what its alignment may use, made when it is first asked for."""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

from llmft import artifacts, fsio, models
from llmft.api import (
    Adapter,
    Alignment,
    Dataset,
    Encoded,
    Objective,
    Progress,
    Prompt,
    Row,
    StageInfo,
    StageResult,
)
from llmft.data import Rows, stage_rows
from llmft.encoding import Encoder
from llmft.errors import CheckpointError
from llmft.notify import Trackers
from llmft.recipe import Recipe, Stage, load_recipe
from llmft.registry import Registry
from llmft.settings import TrainSettings


class StageRun:
    """The StageContext of `llmft.api`, for one stage of a run."""

    def __init__(
        self,
        recipe: Recipe,
        stage: Stage,
        *,
        folder: Path,
        adapter: Adapter[Any],
        alignment: Alignment[Any],
        dataset: Dataset[Any],
        registry: Registry,
        trackers: Trackers,
    ) -> None:
        self.recipe, self.stage = recipe, stage
        self.name, self.folder = stage.name, folder
        self.adapter, self.alignment, self.dataset = adapter, alignment, dataset
        self.registry, self.trackers = registry, trackers
        self.seed = recipe.seed
        self.train: TrainSettings = stage.train
        self.samples: list[dict[str, Any]] = []
        self.notes: list[str] = []

    # --- what is made when first asked for

    @cached_property
    def model(self) -> Any:
        """The base model with the stage's adapter attached, on the device, ready to train."""
        self._progress("load the model", 0, 1)
        seed_everything(self.seed)
        base = models.load_base(
            self.recipe.model, self.load_options, varlen=self.adapter.supports_packing
        )
        base = base.to(device()) if not self.load_options else base
        if self.train.gradient_checkpointing:
            base.gradient_checkpointing_enable({"use_reentrant": False})
        self._bare = twin(base)
        model = self._attached(base)
        self.alignment.extend(model)
        self._progress("load the model", 1, 1)
        return model

    def _attached(self, base: Any) -> Any:
        seed_everything(self.seed)
        if self.stage.start_from is None:
            return self.adapter.attach(base)
        earlier = earlier_stage(self.stage.start_from, self._run_folder, self.recipe)
        return self.adapter.load(base, earlier / artifacts.ADAPTER)

    @property
    def _run_folder(self) -> Path:
        return self.folder.parent.parent

    @property
    def load_options(self) -> dict[str, Any]:
        """How the base is quantised, in BitsAndBytesConfig's names; empty where it is not."""
        asked = self.recipe.model.quantization
        options = dict(self.adapter.load_options())
        if asked.bits == 4:
            options |= {
                name: getattr(asked, name)
                for name in type(asked).model_fields
                if name != "load_in_8bit"
            }
        elif asked.bits == 8:
            options |= {"load_in_8bit": True}
        return options

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return models.load_tokenizer(self.recipe.model)

    @cached_property
    def max_length(self) -> int | None:
        """Tokens in a row at most: the recipe's, or the model's own."""
        return self.train.max_length or models.max_positions(models.load_config(self.recipe.model))

    @cached_property
    def encoder(self) -> Encoder:
        """What turns rows into token ids."""
        return Encoder(self.tokenizer, self.max_length)

    @cached_property
    def _rows(self) -> tuple[Rows, Rows | None]:
        self._progress("read the rows", 0, 1)
        train, judged = stage_rows(self.stage, self.dataset, self.seed)
        for rows in (train, judged):
            if rows is not None and rows.skipped:
                self._note(rows.note())
        return train, judged

    # --- the contract's verbs

    def rows(self) -> Sequence[Row]:
        """Return the training rows."""
        return self._rows[0].rows

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of the rows that are used, for the lock."""
        train, judged = self._rows
        return {"train": train.digest} | ({"evaluate": judged.digest} if judged else {})

    def encode(self, rows: Sequence[Row]) -> list[Encoded]:
        """Return rows as token ids, saying how many were cut or dropped."""
        self._progress("tokenise", 0, len(rows))
        encoded, report = self.encoder.encode(rows, self.train)
        if note := report.note():
            self._note(note)
        return encoded

    def generate(self, prompts: Sequence[Prompt], max_new_tokens: int) -> list[str]:
        """Answer prompts greedily with the model as it is now."""
        from llmft.generation import generate

        return generate(
            self.model,
            self.tokenizer,
            [self.encoder.prompt_ids(prompt) for prompt in prompts],
            max_new_tokens=max_new_tokens,
            batch_size=self.train.per_device_eval_batch_size,
            on_batch=lambda done, total: self._progress("answer", done, total),
        )

    def held_out(self) -> Sequence[Row]:
        """Return the rows the stage is judged on; none where the recipe does not evaluate."""
        judged = self._rows[1]
        return judged.rows if judged else ()

    def reference(self) -> AbstractContextManager[Any]:
        """Return a context in which the model, not yet trained, answers as the reference."""
        return nullcontext() if self.stage.start_from else self.adapter.disabled(self.model)

    def load_stage(self, name: str) -> Any:
        """Return a frozen model of an earlier stage on this one's base weights."""
        _ = self.model
        folder = earlier_stage(name, self._run_folder, self.recipe)
        return load_stage(folder, self.registry, twin(self._bare))

    def fit(self, items: Sequence[Any], objective: Objective) -> StageResult:
        """Announce the stage, score the adapter, train it, and score it again."""
        from llmft import loop

        plan = loop.Plan.of(len(items), self.train, self.seed)
        self.trackers.stage_started(self._info(items, plan.steps))
        before = self.score("before")
        seed_everything(self.seed)
        report = loop.train(
            self.model,
            items,
            objective,
            self.train,
            seed=self.seed,
            groups=self._groups(),
            on_step=self._on_step,
        )
        after = self.score("after")
        return StageResult(
            produces=self.alignment.produces,
            steps=report.steps,
            metrics={
                "train_loss": report.losses[-1],
                "train_seconds": round(report.seconds, 3),
                "items_seen": report.items,
            },
            before=before,
            after=after,
        )

    def score(self, when: str) -> dict[str, float]:
        """Return the stage's scores as it is now, `before` or `after`, and tell the trackers."""
        from llmft import evaluation

        rows, asked = self._rows[1], self.stage.evaluate
        if rows is None or asked is None:
            return {}
        scores = evaluation.Scores()
        if set(asked.metrics) & set(evaluation.LOSS_METRICS):
            encoded, _ = self.encoder.encode(rows.rows, self.train)
            loss = evaluation.mean_loss(
                self.model,
                encoded,
                self.train.per_device_eval_batch_size,
                lambda done, total: self._progress("evaluate", done, total),
            )
            values = {"loss": loss, "perplexity": evaluation.perplexity(loss)}
            scores.metrics |= {name: values[name] for name in asked.metrics if name in values}
        named = {m: self.dataset.metrics[m] for m in asked.metrics if m in self.dataset.metrics}
        if named:
            answers = evaluation.score_answers(
                rows.rows,
                lambda prompts: self.generate(prompts, asked.max_new_tokens),
                named,
                asked.samples,
            )
            scores.metrics |= answers.metrics
            self.samples += [{"when": when, **sample} for sample in answers.samples]
        scores.metrics |= self.alignment.evaluate(self)
        self.trackers.scored(self.name, when, scores.metrics)
        return scores.metrics

    def save(self, result: StageResult) -> None:
        """Write what the stage made; its result comes last, and says that it is finished."""
        run_id = self.folder.parent.parent.name
        fsio.write_jsonl(self.folder / "samples.jsonl", self.samples)
        made = (self.adapter, self.alignment)
        artifacts.save_stage(self.folder, run_id, made, self.model, result)

    # --- telling

    def _groups(self) -> Sequence[Mapping[str, Any]] | None:
        return self.adapter.parameter_groups(self.model, self.train)

    def _info(self, items: Sequence[Any], steps: int) -> StageInfo:
        from llmft.counting import count_parameters

        trainable, total = count_parameters(self.model)
        rows = [item for item in items if isinstance(item, Encoded)]
        return StageInfo(
            name=self.name,
            adapter=self.adapter.method,
            alignment=self.alignment.method,
            trainable_parameters=trainable,
            total_parameters=total,
            rows=len(items),
            tokens=sum(len(row.input_ids) for row in rows),
            learnt_tokens=sum(row.n_labels for row in rows),
            steps=steps,
            notes=tuple(self.notes),
        )

    def _on_step(self, step: int, steps: int, metrics: Mapping[str, float], log: bool) -> None:
        self.trackers.progress(Progress(self.name, "train", step, steps, metrics, log))

    def _progress(self, phase: str, done: int, total: int) -> None:
        self.trackers.progress(Progress(self.name, phase, done, total))

    def _note(self, text: str) -> None:
        self.notes.append(text)
        self.trackers.note(f"{self.name}: {text}")


def stage_adapter(recipe: Recipe, stage: Stage, registry: Registry) -> Adapter[Any]:
    """Return the adapter a stage trains: its own, or that of the stage it starts from."""
    while stage.adapter is None:
        reference = stage.start_from
        assert reference is not None  # checked when the recipe was loaded
        name = reference
        if reference.startswith(EARLIER_RUN):
            folder = earlier_stage(reference, Path(), recipe)
            recipe = load_recipe(folder.parent.parent / "resolved.yaml", registry).recipe
            name = folder.name
        stage = recipe.stage(name)
    made: Adapter[Any] = registry.method("adapter", stage.adapter.method)(stage.adapter)
    return made


EARLIER_RUN = "run:"


def earlier_stage(reference: str, this_run: Path, recipe: Recipe) -> Path:
    """Return the folder of the finished stage that a reference names.

    reference: a stage of this run, or run:<id>/<stage> for one of a run under the same output_dir.
    """
    if not reference.startswith(EARLIER_RUN):
        return artifacts.stage_folder(this_run, reference)
    run_id, _, stage = reference.removeprefix(EARLIER_RUN).partition("/")
    found = sorted(Path(recipe.output_dir).glob(f"*/{run_id}"))
    if not found:
        raise CheckpointError(
            "E402",
            f"there is no run '{run_id}' under '{recipe.output_dir}'",
            fix="give the name of a run's folder, as 'llmft run' printed it",
        )
    return artifacts.stage_folder(found[0], stage)


def twin(model: Any) -> Any:
    """Return a copy of a model's modules that holds the very same tensors."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def load_stage(folder: Path, registry: Registry, base: Any) -> Any:
    """Return a base model with what a finished stage made attached, frozen, in evaluation mode."""
    recipe = load_recipe(folder.parent.parent / "resolved.yaml", registry).recipe
    stage = recipe.stage(folder.name)
    model = stage_adapter(recipe, stage, registry).load(base, folder / artifacts.ADAPTER)
    alignment = registry.method("alignment", stage.alignment.method)(stage.alignment)
    alignment.load(model, folder / artifacts.ADAPTER)
    return model.requires_grad_(False).eval()


def device() -> str:
    """Return the device that models are trained on."""
    from accelerate import PartialState

    return str(PartialState().device)


def seed_everything(seed: int) -> None:
    """Seed Python's, numpy's and torch's generators."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
