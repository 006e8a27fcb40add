"""A running stage: what its alignment or task may use, and how it is trained and scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from llmft.api import (
    Alignment,
    Answer,
    DataError,
    Objective,
    OnlineObjective,
    Progress,
    Prompt,
    PromptRow,
    Sampling,
    StageInfo,
    StageResult,
)
from llmft.data.packing import PackedObjective, pack
from llmft.engine.stage_resources import StageResources
from llmft.modeling.counting import count_parameters, token_rows
from llmft.recipes.work import LOSS_METRICS
from llmft.registry.return_checks import groups_of, metric_of, numbers_of
from llmft.runs import artifacts
from llmft.runs.resuming import trim_metrics
from llmft.system import fsio
from llmft.system.machine import seed_everything
from llmft.training.checked import CheckedObjective, CheckedOnlineObjective
from llmft.training.checkpoints import FOLDER as CHECKPOINTS
from llmft.training.checkpoints import Checkpoints, Saved


class StageRunner(StageResources):
    """The StageContext of `llmft.api`, for one stage of a run."""

    def generate(self, prompts: Sequence[Prompt], max_new_tokens: int) -> list[str]:
        """Answer prompts greedily with the model as it is now."""
        from llmft.evaluation.generation import generate

        return generate(
            self.model,
            self.tokenizer,
            [self.encoder.prompt_ids(prompt) for prompt in prompts],
            max_new_tokens=max_new_tokens,
            batch_size=self.train.per_device_eval_batch_size,
            on_batch=lambda done, total: self.progress("answer", done, total),
            on_cut=lambda cut: self.note(
                f"{cut} of {len(prompts)} prompts fill the model's positions: their starts are cut"
            ),
        )

    def sample(
        self, prompts: Sequence[Prompt], sampling: Sampling, *, seed: int = 0
    ) -> list[list[str]]:
        """Return several answers to each prompt, drawn by the seed; says which prompts were cut."""
        from llmft.evaluation.generation import sample

        asked = [PromptRow(prompt) for prompt in prompts]
        fitted = self.encode_prompts(asked, sampling.max_new_tokens)
        return sample(
            self.model,
            self.tokenizer,
            [prompt.input_ids for prompt in fitted],
            sampling,
            seed=(self.seed, seed),
            batch_size=self.train.per_device_eval_batch_size,
            on_batch=lambda done, total: self.progress("sample", done, total),
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
        top_p: float = 1.0,
        more_stops: Sequence[int] = (),
        batch_size: int | None = None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> list[Answer]:
        """Return an answer to each prompt, as token ids, drawn by random numbers of its own."""
        from llmft.modeling import decoding
        from llmft.system import distributed
        from llmft.system.signals import Stop

        model = self.model if model is None else model
        stops = (*decoding.stop_ids(model, self.tokenizer), *more_stops)
        drawing = decoding.SamplingParams(
            max_new_tokens, stops, temperature, top_p, seed=(self.seed, *seed),
            keep_nuclei=top_p < 1,
        )  # fmt: skip
        answers: list[Answer] | None = None
        with suppress(decoding.Stopped):
            answers = decoding.decode(
                model,
                prompts,
                drawing,
                batch_size=batch_size or self.train.per_device_eval_batch_size,
                numbers=numbers,
                stopping=stopping,
            )
        stopped = answers is None
        if isinstance(stopping, Stop):  # in training all processes draw, and all stop if one does
            stopped = bool(distributed.all_reduce_max(stopped))
        if stopped or answers is None:
            raise decoding.Stopped
        return answers

    def fit(self, items: Sequence[Any], objective: Objective) -> StageResult:
        """Announce the stage, score the adapter, train it, and score it again."""
        if self.train.packing and self.max_length:
            items, objective = pack(items, self.max_length), PackedObjective(objective)
        return self._fit(items, CheckedObjective(objective, self.work), None)

    def fit_online(self, prompts: Sequence[Any], objective: OnlineObjective) -> StageResult:
        """Do what `fit` does with items that the objective draws of prompts."""
        checked = CheckedOnlineObjective(objective, self.work)
        return self._fit(prompts, checked, checked)

    def _fit(
        self, items: Sequence[Any], objective: Objective, online: OnlineObjective | None
    ) -> StageResult:
        from llmft.system import distributed
        from llmft.training import loop
        from llmft.training.step_plan import Plan, refuse_endless_warmup

        if not items:
            raise DataError("E105", f"stage '{self.name}' has nothing left to learn from")
        plan = Plan.of(len(items), self.train, self.seed, distributed.count())
        refuse_endless_warmup(self.name, self.train, plan.steps)
        self.trackers.stage_started(self._info(items, plan.steps))
        checkpoints = self._checkpoints(items)
        saved = distributed.on_rank_zero(checkpoints.newest)
        before = self._before(saved)
        carried = {"before": before, "samples": list(self.samples), "reads": dict(self.reads)}
        checkpoints.carried = carried
        seed_everything(self.seed + distributed.rank())  # each process drops out for itself
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
            self.note,
            self.accept_data,
        )

    def _before(self, saved: Saved | None) -> Mapping[str, float]:
        """Return the scores before training: measured now, or by the run that is resumed."""
        trim_metrics(self.folder, saved.step if saved else 0)
        if saved is None:
            return self.score("before")
        self.note(f"goes on after step {saved.step}, from its checkpoint")
        self.samples = list(saved.carried["samples"])
        before: Mapping[str, float] = saved.carried["before"]
        if before:
            self.trackers.scored(self.name, "before", before)
        return before

    def score(self, when: str) -> dict[str, float]:
        """Return the stage's scores as it is now, `before` or `after`, and tell the trackers.

        Of several processes the first one scores, and tells the others.
        """
        from llmft.system import distributed

        return distributed.on_rank_zero(lambda: self._score(when))

    def _score(self, when: str) -> dict[str, float]:
        from llmft.evaluation import evaluation

        rows, asked = self._rows[1], self.stage.evaluate
        if rows is None or asked is None:
            return {}
        self._when = when
        scores = evaluation.Scores()
        if set(asked.metrics) & set(LOSS_METRICS):
            encoded, report = self.encoder.encode(evaluation.as_answered(rows.rows), self.train)
            if when == "before" and (said := report.note()):
                self.note(f"to judge the loss, {said}")
            loss = evaluation.mean_loss(
                self.model,
                encoded,
                self.train.per_device_eval_batch_size,
                lambda done, total: self.progress("evaluate", done, total),
            )
            values = {"loss": loss, "perplexity": evaluation.perplexity(loss)}
            scores.metrics |= {name: values[name] for name in asked.metrics if name in values}
        theirs = self.dataset.metrics
        named = {m: metric_of(self.dataset, m) for m in asked.metrics if m in theirs}
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
            scores.metrics |= numbers_of(self.work, "'evaluate'", self.work.evaluate(self))
        self.trackers.scored(self.name, when, scores.metrics)
        return scores.metrics

    def add_samples(self, samples: Sequence[Mapping[str, Any]]) -> None:
        """Keep answers of the evaluation that runs, as many as the recipe asks for."""
        most = self.stage.evaluate.samples if self.stage.evaluate else 0
        self.samples += [{"when": self._when, **sample} for sample in samples[:most]]

    def save(self, result: StageResult) -> None:
        """Write what the stage made; its result comes last, and says that it is finished."""
        fsio.write_jsonl(self.folder / "samples.jsonl", self.samples)
        made = (self.adapter, self.work) if isinstance(self.work, Alignment) else ()
        model = self.model if made else None
        artifacts.save_stage(
            self.folder, self._run_folder.name, made, model, result, self.fingerprint,
            self.tokenizer if made else None,
        )  # fmt: skip

    def _groups(self) -> Sequence[Mapping[str, Any]]:
        from llmft.training.optimizer import joined_groups

        parameters = [p for p in self.model.parameters() if p.requires_grad]
        added: Sequence[Mapping[str, Any]] = ()
        own = self.adapter.parameter_groups(self.model, self.train)
        if own is not None:
            own = groups_of(self.adapter, own)
        if isinstance(self.work, Alignment):
            added = groups_of(self.work, self.work.parameter_groups(self.model, self.train))
        return joined_groups(parameters, own, added)

    def _info(self, items: Sequence[Any], steps: int) -> StageInfo:
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
            trained_tokens=sum(row.n_labels for row in rows),
            steps=steps,
            notes=tuple(self.notes),
        )

    def _on_step(self, step: int, steps: int, metrics: Mapping[str, float], log: bool) -> None:
        self._tell(f"step {step} of {steps} of the stage '{self.name}'")
        self.trackers.progress(Progress(self.name, "train", step, steps, metrics, log))
