"""REINFORCE leave-one-out: an answer is compared with the others to the same prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import model_validator

from llmft.api import Field, hookimpl
from llmft.toolkit import all_reduce_sum, tensor_like
from llmft_alignments.grpo.config import GroupConfig
from llmft_alignments.grpo.method import GroupMethod

if TYPE_CHECKING:
    import torch

    from llmft.modeling.token_stats import TokenStats
    from llmft_alignments.grpo.rollouts import GroupRollout, ScoredGroups


class RlooConfig(GroupConfig):
    """TRL's RLOOConfig, by its own names."""

    num_generations: int = Field(
        2, ge=2, le=1024, description="answers sampled for each prompt: a group"
    )
    beta: float = Field(
        0.05, ge=0, le=1e6, description="the KL coefficient, in the reward; 0: no reference model"
        " is held"
    )  # fmt: skip
    normalize_advantages: bool = Field(
        False, description="give a step's advantages mean 0 and variance 1"
    )
    reward_clip_range: list[float] | None = Field(
        None,
        min_length=2,
        max_length=2,
        description="clip the weighted sum of the rewards to between these two",
    )

    @model_validator(mode="after")
    def _ordered(self) -> RlooConfig:
        if self.reward_clip_range and self.reward_clip_range[0] >= self.reward_clip_range[1]:
            raise ValueError("reward_clip_range is empty; write the lower bound first")
        return self


class RlooRule:
    """REINFORCE leave-one-out (Ahmadian et al. 2024), with PPO's clipping of whole answers."""

    def __init__(self, config: RlooConfig) -> None:
        self.config = config
        self.needs_logps = config.needs_old_logps or config.beta > 0

    def advantages(self, judged: ScoredGroups, weights_R: Sequence[float]) -> torch.Tensor:
        from llmft_alignments.grpo import maths
        from llmft_alignments.grpo.rollouts import learnt_of
        from llmft_alignments.online.statistics import moments, power_sums

        config, rewards_B = self.config, judged.rewards_B
        if config.reward_clip_range:
            rewards_B = rewards_B.clamp(*config.reward_clip_range)
        if config.beta:
            # Of an answer that is masked, TRL's penalty sees no token.
            pairs = zip(judged.kl_of_answers(), learnt_of(judged.answers, config), strict=True)
            kl = [kl * counts for kl, counts in pairs]
            rewards_B = rewards_B - config.beta * rewards_B.new_tensor(kl)
        advantages_B = maths.leave_one_out(rewards_B, config.num_generations)
        if config.normalize_advantages:
            mean, variance = moments(all_reduce_sum(power_sums(advantages_B)))
            advantages_B = (advantages_B - mean) / (variance.sqrt() + maths.SMALL)
        return advantages_B

    def weight(self, batch: Sequence[GroupRollout]) -> float:
        return float(len(batch))

    def loss(
        self, stats: TokenStats, old_N: torch.Tensor, batch: Sequence[GroupRollout]
    ) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        import torch

        from llmft_alignments.grpo import maths

        config, row_N = self.config, stats.row_N
        learnt_B = tensor_like([float(one.learnt) for one in batch], stats.logps_N)
        advantages_B = tensor_like([one.advantage for one in batch], learnt_B)
        log_ratio_B = maths.per_answer(stats.logps_N - old_N, row_N, len(batch)) * learnt_B
        ratio_B = torch.exp(log_ratio_B)
        loss_B = maths.clipped_loss(ratio_B, advantages_B, config.epsilon, config.high)
        low_B, high_B = maths.clipped_away(ratio_B, advantages_B, config.epsilon, config.high)
        return loss_B.sum(), {} if not config.needs_old_logps else {
            "clip_ratio_low": low_B.double().mean(),
            "clip_ratio_high": high_B.double().mean(),
        }


class Rloo(GroupMethod[RlooConfig]):
    """REINFORCE leave-one-out (Ahmadian et al. 2024) of sampled answers.

    An answer's advantage is its reward less the mean of the others to the same prompt. The KL
    penalty is part of the reward, and the probability ratio is that of the whole answer.
    """

    method = "rloo"
    Config = RlooConfig

    def rule(self) -> Any:
        return RlooRule(self.config)


@hookimpl
def llmft_alignments() -> list[type[Rloo]]:
    return [Rloo]
