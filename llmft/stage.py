"""A running stage: what its alignment or task may use, made when it is first asked for."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

from llmft import artifacts, fsio, models
from llmft.api import (
    Alignment,
    Answer,
    Encoded,
    EncodedPair,
    EncodedPrompt,
    Objective,
    OnlineObjective,
    Progress,
    Prompt,
    RewardConfig,
    RewardFunction,
    Row,
    Sampling,
    StageInfo,
    StageResult,
    Task,
)
from llmft.notify import Trackers
from llmft.preparing.data import Rows, stage_rows
from llmft.preparing.encoding import Encoder
from llmft.preparing.packing import PackedObjective, pack
from llmft.preparing.pairs import encode_pairs
from llmft.preparing.prompts import encode_prompts
from llmft.preparing.repeats import repeats
from llmft.recipe import Recipe, Stage
from llmft.registry import Registry
from llmft.saving.checkpoints import FOLDER as CHECKPOINTS
from llmft.saving.checkpoints import Checkpoints, Saved
from llmft.saving.earlier import earlier_stage, load_options, load_stage, twin
from llmft.saving.resuming import trim_metrics
from llmft.settings import TrainSettings
from llmft.startup import without_collecting


class StageRun:
    """The StageContext of `llmft.api`, for one stage of a run."""

    def __init__(
        self,
        recipe: Recipe,
        stage: Stage,
        *,
        folder: Path,
        adapter: Any,
        work: Alignment[Any] | Task[Any],
        dataset: Any,
        registry: Registry,
        trackers: Trackers,
        tell: Callable[[str], None] = lambda at: None,
    ) -> None:
        self.recipe, self.stage = recipe, stage
        self.name, self.folder = stage.name, folder
        self.adapter: Any = adapter  # an Adapter; None for a task on the base
        self.dataset: Any = dataset  # a Dataset; None for a task that reads none
        self.work = work
        self.registry, self.trackers, self._tell = registry, trackers, tell
        self.seed = recipe.seed
        self.train: TrainSettings = stage.train
        self.samples: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self._when = "before"
        self.identity = ""

    # --- what is made when first asked for

    @cached_property
    @without_collecting()
    def model(self) -> Any:
        """The base model with the stage's adapter attached, on the device, ready to train."""
        self._progress("load the model", 0, 1)
        seed_everything(self.seed)
        base = models.load_base(
            self.recipe.model,
            self.load_options,
            varlen=self.adapter is None or self.adapter.supports_packing,
        )
        base = base.to(device()) if not self.load_options else base
        if self.train.gradient_checkpointing:
            base.gradient_checkpointing_enable({"use_reentrant": False})
        self._bare = twin(base)
        model = self._attached(base)
        if isinstance(self.work, Alignment):
            self.work.extend(model)
        else:
            model = model.requires_grad_(False).eval()
        self._progress("load the model", 1, 1)
        return model

    def _attached(self, base: Any) -> Any:
        seed_everything(self.seed)
        if self.stage.start_from is None:
            return self.adapter.attach(base) if self.adapter else base
        earlier = earlier_stage(self.stage.start_from, self._run_folder, self.recipe)
        return self.adapter.load(base, earlier / artifacts.ADAPTER)

    @property
    def _run_folder(self) -> Path:
        return self.folder.parent.parent

    @property
    def load_options(self) -> dict[str, Any]:
        """How the base is quantised, in BitsAndBytesConfig's names; empty where it is not."""
        return load_options(self.recipe, self.adapter)

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return models.load_tokenizer(self.recipe.model)

    @cached_property
    def max_length(self) -> int | None:
        """Tokens in a row at most: the recipe's, or what the model's positions leave."""
        positions = models.max_positions(models.load_config(self.recipe.model))
        taken = self.adapter.virtual_tokens() if self.adapter else 0
        left = positions - taken if positions else None
        return self.train.max_length or left

    @cached_property
    def encoder(self) -> Encoder:
        """What turns rows into token ids."""
        return Encoder(self.tokenizer, self.max_length)

    @cached_property
    def _rows(self) -> tuple[Rows, Rows | None]:
        self._progress("read the rows", 0, 1)
        train, judged = stage_rows(self.stage, self.dataset, self.seed)
        for rows in (train, judged):
            if rows is not None and (note := rows.note()):
                self._note(note)
        if note := repeats(train.rows, judged.rows if judged else ()):
            self._note(note)
        return train, judged

    # --- the contract's verbs

    def rows(self) -> Sequence[Row]:
        """Return the training rows."""
        return self._rows[0].rows

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of the rows that are used, for the lock."""
        if self.dataset is None:
            return {}
        train, judged = self._rows
        return {"train": train.digest} | ({"evaluate": judged.digest} if judged else {})

    def encode(self, rows: Sequence[Row]) -> list[Encoded]:
        """Return rows as token ids, saying how many were cut or dropped."""
        self._progress("tokenise", 0, len(rows))
        encoded, report = self.encoder.encode(rows, self.train)
        if note := report.note():
            self._note(note)
        return encoded

    def encode_pairs(self, rows: Sequence[Row]) -> list[EncodedPair]:
        """Return preference rows as token ids, saying how many were cut or dropped."""
        self.progress("tokenise", 0, len(rows))
        pairs, report = encode_pairs(self.encoder, rows, self.train)
        if note := report.note():
            self._note(note)
        return pairs

    def encode_prompts(self, rows: Sequence[Row], max_new_tokens: int) -> list[EncodedPrompt]:
        """Return prompts as token ids that leave room for an answer, saying how many were cut."""
        self.progress("tokenise", 0, len(rows))
        prompts, report = encode_prompts(self.encoder, rows, self.train, max_new_tokens)
        if note := report.note():
            self._note(note)
        return prompts

    @property
    def shares_prompts(self) -> bool:
        """Whether `label_nll` may compute a prompt once for two answers."""
        shares: bool = self.adapter.supports_shared_prompt
        return shares

    def progress(self, phase: str, done: int, total: int) -> None:
        """Tell how far a phase of the method's own has come."""
        self._progress(phase, done, total)

    def generate(self, prompts: Sequence[Prompt], max_new_tokens: int) -> list[str]:
        """Answer prompts greedily with the model as it is now."""
        from llmft.evaluating.generation import generate

        return generate(
            self.model,
            self.tokenizer,
            [self.encoder.prompt_ids(prompt) for prompt in prompts],
            max_new_tokens=max_new_tokens,
            batch_size=self.train.per_device_eval_batch_size,
            on_batch=lambda done, total: self._progress("answer", done, total),
        )

    def sample(
        self, prompts: Sequence[Prompt], sampling: Sampling, *, seed: int = 0
    ) -> list[list[str]]:
        """Return several answers to each prompt, drawn by the seed."""
        from llmft.evaluating.generation import sample

        return sample(
            self.model,
            self.tokenizer,
            [self.encoder.prompt_ids(prompt) for prompt in prompts],
            sampling,
            seed=self.seed * 1_000_003 + seed,
            batch_size=self.train.per_device_eval_batch_size,
            on_batch=lambda done, total: self._progress("sample", done, total),
        )

    def decode(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        *,
        seed: Sequence[int],
        numbers: Sequence[int] | None = None,
        model: Any = None,
        temperature: float = 1.0,
        more_stops: Sequence[int] = (),
        batch_size: int | None = None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> list[Answer]:
        """Return an answer to each prompt, as token ids, drawn by random numbers of its own."""
        from llmft.training import decoding

        model = self.model if model is None else model
        stops = (*decoding.stop_ids(model, self.tokenizer), *more_stops)
        return decoding.decode(
            model,
            prompts,
            decoding.Drawing(max_new_tokens, stops, temperature, seed=(self.seed, *seed)),
            batch_size=batch_size or self.train.per_device_eval_batch_size,
            numbers=numbers,
            stopping=stopping,
        )

    def reward_function(self, config: RewardConfig) -> RewardFunction[Any]:
        """Return the reward function of a block in the method's own settings."""
        made: RewardFunction[Any] = self.registry.method("reward", config.method)(config)
        return made

    def note(self, text: str) -> None:
        """Tell the trackers a remark that a person should read."""
        self._note(text)

    def held_out(self) -> Sequence[Row]:
        """Return the rows the stage is judged on; none where the recipe does not evaluate."""
        judged = self._rows[1]
        return judged.rows if judged else ()

    def reference(self) -> AbstractContextManager[Any]:
        """Return a context in which the model, not yet trained, answers as the reference."""
        return nullcontext() if self.stage.start_from else self.adapter.disabled(self.model)

    def stage_folder(self, name: str) -> Path:
        """Return the folder of an earlier stage that is finished."""
        return earlier_stage(name, self._run_folder, self.recipe)

    def load_stage(self, name: str) -> Any:
        """Return a frozen model of an earlier stage on this one's base weights."""
        _ = self.model
        folder = earlier_stage(name, self._run_folder, self.recipe)
        return load_stage(folder, self.registry, twin(self._bare))

    def reference_model(self) -> Any:
        """Return a frozen model, on the same base weights, that answers as the stage's start."""
        _ = self.model
        base = twin(self._bare)
        if self.stage.start_from is not None:
            earlier = earlier_stage(self.stage.start_from, self._run_folder, self.recipe)
            base = self.adapter.load(base, earlier / artifacts.ADAPTER)
        return base.requires_grad_(False).eval()

    def fit(self, items: Sequence[Any], objective: Objective) -> StageResult:
        """Announce the stage, score the adapter, train it, and score it again."""
        if self.train.packing and self.max_length:
            items, objective = pack(items, self.max_length), PackedObjective(objective)
        return self._fit(items, objective, None)

    def fit_online(self, prompts: Sequence[Any], objective: OnlineObjective) -> StageResult:
        """Do what `fit` does with items that the objective draws of prompts."""
        return self._fit(prompts, objective, objective)

    def _fit(
        self, items: Sequence[Any], objective: Objective, online: OnlineObjective | None
    ) -> StageResult:
        from llmft import loop
        from llmft.training.plan import Plan

        plan = Plan.of(len(items), self.train, self.seed)
        self.trackers.stage_started(self._info(items, plan.steps))
        checkpoints = self._checkpoints(items)
        saved = checkpoints.newest()
        before = self._before(saved)
        checkpoints.carried = {"before": before, "samples": list(self.samples)}
        seed_everything(self.seed)
        report = loop.train(
            self.model,
            items,
            objective,
            self.train,
            seed=self.seed,
            groups=self._groups(),
            on_step=self._on_step,
            checkpoints=checkpoints,
            saved=saved,
            online=online,
        )
        after = self.score("after")
        return StageResult(
            produces=self.work.produces,
            steps=report.steps,
            metrics={
                "train_loss": report.last_loss,
                **({"skipped_updates": report.skipped} if report.skipped else {}),
                "train_seconds": round(report.seconds, 3),
                "items_seen": report.items,
                **checkpoints.metrics(),
            },
            before=before,
            after=after,
        )

    def _checkpoints(self, items: Sequence[Any]) -> Checkpoints:
        rows = {f"{split} rows": digest for split, digest in self.digests.items()}
        return Checkpoints(
            self.folder / CHECKPOINTS,
            self._run_folder.name,
            {**rows, "number of items": len(items)},
            self.train.save_total_limit,
            self._note,
        )

    def _before(self, saved: Saved | None) -> Mapping[str, float]:
        """Return the scores before training: measured now, or by the run that is resumed."""
        trim_metrics(self.folder, saved.step if saved else 0)
        if saved is None:
            return self.score("before")
        self._note(f"goes on after step {saved.step}, from its checkpoint")
        self.samples = list(saved.carried["samples"])
        before: Mapping[str, float] = saved.carried["before"]
        if before:
            self.trackers.scored(self.name, "before", before)
        return before

    def score(self, when: str) -> dict[str, float]:
        """Return the stage's scores as it is now, `before` or `after`, and tell the trackers."""
        from llmft.evaluating import evaluation

        rows, asked = self._rows[1], self.stage.evaluate
        if rows is None or asked is None:
            return {}
        self._when = when
        scores = evaluation.Scores()
        if set(asked.metrics) & set(evaluation.LOSS_METRICS):
            encoded, _ = self.encoder.encode(evaluation.as_answered(rows.rows), self.train)
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
        if isinstance(self.work, Alignment):
            scores.metrics |= self.work.evaluate(self)
        self.trackers.scored(self.name, when, scores.metrics)
        return scores.metrics

    def add_samples(self, samples: Sequence[Mapping[str, Any]]) -> None:
        """Keep answers of the evaluation that runs, as many as the recipe asks for."""
        most = self.stage.evaluate.samples if self.stage.evaluate else 0
        self.samples += [{"when": self._when, **sample} for sample in samples[:most]]

    def save(self, result: StageResult) -> None:
        """Write what the stage made; its result comes last, and says that it is finished."""
        run_id = self.folder.parent.parent.name
        fsio.write_jsonl(self.folder / "samples.jsonl", self.samples)
        made = (self.adapter, self.work) if isinstance(self.work, Alignment) else ()
        model = self.model if made else None
        artifacts.save_stage(self.folder, run_id, made, model, result, self.identity)

    # --- telling

    def _groups(self) -> Sequence[Mapping[str, Any]] | None:
        groups: Sequence[Mapping[str, Any]] | None
        groups = self.adapter.parameter_groups(self.model, self.train)
        return groups

    def _info(self, items: Sequence[Any], steps: int) -> StageInfo:
        from llmft.preparing.counting import count_parameters

        trainable, total = count_parameters(self.model)
        rows = [row for item in items for row in token_rows(item)]
        return StageInfo(
            name=self.name,
            adapter=self.adapter.method if self.adapter else "",
            alignment=self.work.method,
            trainable_parameters=trainable,
            total_parameters=total,
            rows=sum(len(item) if isinstance(item, tuple) else 1 for item in items),
            tokens=sum(len(row.input_ids) for row in rows),
            learnt_tokens=sum(row.n_labels for row in rows),
            steps=steps,
            notes=tuple(self.notes),
        )

    def _on_step(self, step: int, steps: int, metrics: Mapping[str, float], log: bool) -> None:
        self._tell(f"step {step} of {steps} of the stage '{self.name}'")
        self.trackers.progress(Progress(self.name, "train", step, steps, metrics, log))

    def _progress(self, phase: str, done: int, total: int) -> None:
        self.trackers.progress(Progress(self.name, phase, done, total))

    def _note(self, text: str) -> None:
        self.notes.append(text)
        self.trackers.note(f"{self.name}: {text}")


def token_rows(item: Any) -> Sequence[Encoded]:
    """Return the token rows in an item that is trained on, to be counted."""
    if isinstance(item, tuple):  # packed
        return [row for one in item for row in token_rows(one)]
    if isinstance(item, EncodedPair):
        return (item.chosen, item.rejected)
    return (item,) if isinstance(item, Encoded) else ()


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
