"""A planned stage's answers, which are made up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmft.api import Answer, Prompt, SamplingParams
from llmft.engine.stage_sampler import StageSampler
from llmft.planning.evaluation_cost import PROMPTS, grow_cache
from llmft.planning.plan_state import PlanState, SampledCounts


class PlannedSampler(StageSampler):
    """Made-up answers of the greatest length, whose cache has grown."""

    state: PlanState

    def generate(
        self, prompts: Sequence[Prompt], max_new_tokens: int, *, model: Any = None
    ) -> list[str]:
        """Return empty answers: a model without numbers has none."""
        return ["" for _ in prompts]

    def sample(
        self, prompts: Sequence[Prompt], params: SamplingParams, *, seed: int = 0
    ) -> list[list[str]]:
        """Return made-up answers of about the greatest length, having let their cache grow."""
        count, new = params.num_return_sequences, params.max_new_tokens
        asked = [len(self.data.encoder.prompt_ids(prompt)) for prompt in prompts[:PROMPTS]]
        lengths = sorted((length for length in asked for _ in range(count)), reverse=True)
        self.state.memory.begin("sample")
        grow_cache(self.models.model, self.state.memory, lengths[: self.batch_size], new)
        self.state.computes(decoded=(len(prompts) * count, self.batch_size, new))
        if not self.state.assumed:
            self.state.sampled = SampledCounts(len(prompts), count * len(prompts), new)
        return [[f"{number}" + " a" * (new - 1) for number in range(count)] for _ in prompts]

    def decode(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams, **options: Any
    ) -> list[Answer]:
        """Return made-up answers of the greatest length, having let their cache grow."""
        new, size = params.max_new_tokens, options.get("batch_size") or self.batch_size
        self.state.max_new_tokens = new
        lengths = sorted((len(prompt) for prompt in prompts), reverse=True)[:size]
        if lengths:
            model = options.get("model")
            writer = self.models.model if model is None else model
            grow_cache(writer, self.state.memory, lengths, new)
            self.state.computes(decoded=(len(prompts), len(lengths), new))
        made_up = [1] * new
        return [Answer(list(made_up), [0.0] * new) for _ in prompts]
