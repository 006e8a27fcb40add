"""Answers of a stage's model as it is now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from typing import Any

from llmft.api import Answer, Prompt, PromptRow, SamplingParams
from llmft.engine.stage_data import StageData
from llmft.engine.stage_log import StageLog
from llmft.engine.stage_models import StageModels

_SAMPLES = 2**31 + 1
"""In the place of a step: `sample` uses other random numbers than a method's `decode` does."""


class StageSampler:
    """The `sampler` of a StageContext."""

    def __init__(self, models: StageModels, data: StageData, log: StageLog) -> None:
        self.models, self.data, self.log = models, data, log
        self.seed = data.bound.spec.own_seed(data.seed)
        self.batch_size = data.train.per_device_eval_batch_size

    def generate(
        self, prompts: Sequence[Prompt], max_new_tokens: int, *, model: Any = None
    ) -> list[str]:
        """Return the greedy answer to each prompt."""
        from llmft.evaluation.generation import generate

        self.log.progress("answer", 0, len(prompts))
        return generate(
            self.models.model if model is None else model,
            self.models.tokenizer,
            [self.data.encoder.prompt_ids(prompt) for prompt in prompts],
            max_new_tokens=max_new_tokens,
            batch_size=self.batch_size,
            on_batch=lambda done, total: self.log.progress("answer", done, total),
            on_cut=lambda cut: self.log.note(
                f"{cut} of {len(prompts)} prompts fill the model's positions: their starts are cut"
            ),
        )

    def sample(
        self, prompts: Sequence[Prompt], params: SamplingParams, *, seed: int = 0
    ) -> list[list[str]]:
        """Return several answers to each prompt, by the seed; notes which prompts were cut."""
        from llmft.evaluation.generation import sample

        asked = [PromptRow(prompt) for prompt in prompts]
        fitted = self.data.encode_prompts(asked, params.max_new_tokens)
        self.log.progress("sample", 0, len(prompts))
        return sample(
            self.models.model,
            self.models.tokenizer,
            [prompt.input_ids for prompt in fitted],
            params,
            seed=(self.seed, _SAMPLES, seed),
            batch_size=self.batch_size,
            on_batch=lambda done, total: self.log.progress("sample", done, total),
        )

    def decode(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        *,
        seed: Sequence[int],
        numbers: Sequence[int] | None = None,
        model: Any = None,
        batch_size: int | None = None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> list[Answer]:
        """Return an answer to each prompt, as token ids, with random numbers of its own.

        Another model's answers end where the trained model's do, too.
        """
        from llmft.modeling import decoding
        from llmft.system import distributed
        from llmft.system.signals import Stop

        own = self.models.model
        model = own if model is None else model
        ends = [decoding.stop_ids(one, self.models.tokenizer) for one in (own, model)]
        stops = tuple({*chain(*ends), *params.stop_token_ids})
        answers: list[Answer] | None = None
        in_training = isinstance(stopping, Stop)  # a step tells its own progress

        def tell(done: int, total: int) -> None:
            if not in_training:
                self.log.progress("sample", done, total)

        tell(0, len(prompts))
        with suppress(decoding.Stopped):
            answers = decoding.decode(
                model,
                prompts,
                replace(params, stop_token_ids=stops),
                seed=(self.seed, *seed),
                keep_nuclei=params.top_p < 1,
                batch_size=batch_size or self.batch_size,
                numbers=numbers,
                stopping=stopping,
                on_batch=tell,
            )
        stopped = answers is None
        if in_training:  # all processes sample, and all stop if one does
            stopped = bool(distributed.all_reduce_max(stopped))
        if stopped or answers is None:
            raise decoding.Stopped
        return answers
