"""What GRPO and RLOO do alike as alignments: training, scoring, and their smoke settings."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from llmft.api import Alignment, StageContext, StageResult
from llmft_alignments.grpo.config import GroupConfig
from llmft_alignments.start import dropout_off

HELD_OUT = 2**31
"""In the place of a step, so that no answer of an evaluation is drawn like one of training."""

C = TypeVar("C", bound=GroupConfig)


class GroupMethod(Alignment[C]):
    """An alignment that samples groups of answers to each prompt, and compares them."""

    knobs = ("beta", "beta")
    """The settings against a far policy, and against one whose entropy collapses."""
    rows = ("prompt", "completion")
    produces = "policy"
    supports_token_budget = False
    supports_shard_base = False
    supports_length_groups = False
    evaluate_generates = True
    greater_is_better: ClassVar = {"reward": True, "kl": False}

    def __init__(self, config: C) -> None:
        super().__init__(config)
        self._sampler: Any = None

    @abstractmethod
    def rule(self) -> Any:
        """Return the method's own `llmft_alignments.grpo.objective.Rule`."""

    def train(self, context: StageContext) -> StageResult:
        from llmft_alignments.grpo.objective import GroupObjective
        from llmft_alignments.online.diagnostics import Diagnostics

        prompts = context.data.encode_prompts(context.data.rows(), self.max_new_tokens())
        watch = Diagnostics(context.log.note, knobs=self.knobs)
        objective = GroupObjective(
            self.config, self.rule(), self._sampler_of(context), watch, context.seed
        )
        with dropout_off(context, self.config.disable_dropout):
            result = context.fit_online(prompts, objective)
        watch.conclude(result.before, result.after)
        return result

    def evaluate(self, context: StageContext) -> Mapping[str, float]:
        """Return the mean of the weighted rewards and of each, the length, and the share of ends.

        One answer to each held-out prompt is sampled as in training. With a reference, kl: how far
        the policy is from it, in nats an answer.
        """
        if not context.data.held_out():
            return {}
        sampler = self._sampler_of(context)
        prompts = context.data.encode_prompts(context.data.held_out(), self.max_new_tokens())
        answers = sampler.sample_rollouts(prompts, (HELD_OUT,), range(len(prompts)))
        judged = sampler.judge(prompts, answers, logps=sampler.reference is not None)
        count = len(prompts)
        names = sampler.scorer.names
        context.log.add_samples(
            [
                {
                    "prompt": prompt.prompt, "answer": text, "right": list(prompt.answers),
                    "reward": reward,
                }
                for prompt, text, reward in zip(
                    prompts, judged.texts, judged.rewards_B.tolist(), strict=True
                )
            ]
        )  # fmt: skip
        found = {"reward": float(judged.rewards_B.double().mean())}
        if len(names) > 1:
            means = judged.scores_BR.double().mean(0).tolist()
            found |= {f"rewards/{name}": mean for name, mean in zip(names, means, strict=True)}
        if sampler.reference is not None:
            found["kl"] = sum(judged.kl_of_answers()) / count
        found["length"] = sum(len(answer.ids) for answer in answers) / count
        found["ended"] = sum(answer.ended for answer in answers) / count
        return found

    def _sampler_of(self, context: StageContext) -> Any:
        from llmft_alignments.grpo.rollouts import GroupSampler

        if self._sampler is None:
            self._sampler = GroupSampler(self.config, context, self.rule().needs_logps)
        return self._sampler

    def max_new_tokens(self) -> int:
        # A reward model reads one more after a stop_token.
        return self.config.max_completion_length + (self.config.stop_token is not None)

    def smoke_overrides(self) -> Mapping[str, Any]:
        most = {"max_completion_length": 8, "num_generations": 2, "num_iterations": 2}
        return {name: min(getattr(self.config, name), value) for name, value in most.items()}
