"""What a step of a group-relative method does: sample groups, score them, and learn from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from llmft.api import EncodedPrompt
from llmft.toolkit import all_reduce_sum, tensor_like
from llmft_alignments.grpo.config import GroupConfig, GrpoConfig
from llmft_alignments.grpo.rollouts import (
    GroupRollout,
    GroupSampler,
    ScoredGroups,
    learnt_of,
)
from llmft_alignments.online.diagnostics import Diagnostics
from llmft_alignments.online.sampling import sample_groups
from llmft_alignments.start import apart, other_start

if TYPE_CHECKING:
    import torch

    from llmft.modeling.token_stats import TokenStats


class Rule(Protocol):
    """How a method turns scores into advantages, and log-likelihoods into a loss."""

    needs_logps: bool
    """Whether it reads the log-likelihoods of answers as they were sampled."""

    def advantages(self, judged: ScoredGroups, weights_R: Sequence[float]) -> torch.Tensor:
        """Return the advantage of each answer, shape (B,); all processes take part."""

    def weight(self, batch: Sequence[GroupRollout]) -> float:
        """Return by what the summed loss is divided."""

    def loss(
        self, stats: TokenStats, old_N: torch.Tensor, batch: Sequence[GroupRollout]
    ) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        """Return the loss that is summed over the batch, and means of tokens by name."""


class GroupObjective:
    """A group-relative method as an online objective: see `llmft.api.OnlineObjective`."""

    def __init__(
        self,
        config: GroupConfig,
        rule: Rule,
        sampler: GroupSampler,
        watch: Diagnostics,
        seed: int,
    ) -> None:
        self.config, self.rule, self.sampler, self.watch = config, rule, sampler, watch
        self.seed = seed
        self.items_per_prompt = config.num_generations
        self.rates_per_step = config.num_iterations * config.steps_per_generation
        self._tallies: Any = None
        self._entropy: list[Any] = []
        self._first = False

    # --- sampling

    def sample_rollouts(
        self,
        prompts: Sequence[EncodedPrompt],
        numbers: Sequence[int],
        step: int,
        stopping: Callable[[], bool],
    ) -> list[GroupRollout]:
        repeated, answers = sample_groups(
            self.sampler, prompts, numbers, self.items_per_prompt, step, stopping
        )
        self._first = step == 0
        return self.rollouts(self.sampler.judge(repeated, answers))

    def rollouts(self, judged: ScoredGroups) -> list[GroupRollout]:
        """Return scored answers with their advantages; all processes take part."""
        import torch

        advantages = self.rule.advantages(judged, self.sampler.scorer.weights_R).tolist()
        learnt = learnt_of(judged.answers, self.config)
        tokens = sum(
            len(answer.ids) for answer, counts in zip(judged.answers, learnt, strict=True) if counts
        )
        whole = all_reduce_sum(torch.tensor([float(tokens), float(len(learnt))]).double())
        share = max(float(whole[0]), 1.0) / max(float(whole[1]), 1.0)
        self._tally(judged)
        return [
            GroupRollout(
                row.input_ids, row.labels, row.origin,
                advantage, logps_T, reference_T, counts, share,
            )
            for row, advantage, logps_T, reference_T, counts in zip(
                judged.rows, advantages, judged.logps, judged.reference, learnt, strict=True
            )
        ]  # fmt: skip

    # --- learning

    def updates(self, items: int, step: int) -> Iterator[list[int]]:
        """Yield the answers of each update: whole groups, in another order each iteration."""
        import numpy as np

        size = self.items_per_prompt
        for iteration in range(self.config.num_iterations):
            order = np.random.default_rng((self.seed, step, iteration)).permutation(items // size)
            for part in np.array_split(order, self.config.steps_per_generation):
                if len(part):
                    yield [int(group) * size + k for group in part for k in range(size)]
                    self._first = False

    def should_continue(self, means: Mapping[str, float]) -> bool:
        return True

    def weight(self, batch: Sequence[GroupRollout]) -> float:
        return self.rule.weight(batch)

    def loss(
        self, model: Any, batch: Sequence[GroupRollout]
    ) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        import torch

        from llmft_alignments.online.statistics import power_sums
        from llmft_alignments.preference_maths import k3_divergence

        bonus = getattr(self.config, "entropy_coef", 0.0)
        stats = self.sampler.stats(model, batch, entropy_gradient=bonus > 0)
        now_N = stats.logps_N.detach()
        old = [one.logps for one in batch]
        old_N = now_N if any(one is None for one in old) else torch.cat(old)  # type: ignore[arg-type]
        if self._first and self.config.disable_dropout:
            self._refuse_other_start(now_N, old_N, batch)
        loss, means = self.rule.loss(stats, old_N, batch)
        with torch.no_grad():
            entropy_N = stats.entropy_N.detach()
            means = {**means, "entropy": entropy_N.mean()}
            if self.config.needs_old_logps:
                means["ratio"] = torch.exp(now_N - old_N).mean()
                means["approx_kl"] = k3_divergence(old_N, now_N).mean()
            self._entropy.append(power_sums(entropy_N)[:2])
            sums = torch.stack([mean.double() for mean in means.values()]) * self.weight(batch)
        return loss, dict(zip(means, sums.unbind(), strict=True))

    def _refuse_other_start(
        self, now_N: torch.Tensor, old_N: torch.Tensor, batch: Sequence[GroupRollout]
    ) -> None:
        """Raise StageError where a policy that has learnt nothing is not the one that sampled.

        And where it starts as its reference, but has another distribution.
        """
        import torch

        context = self.sampler.context
        # The answers were judged in other batches, which rounds otherwise.
        if apart(now_N - old_N, context, times=4.0):
            ratio = float((now_N - old_N).exp().mean())
            raise other_start(f"its ratio to itself is {ratio:.4f} in place of 1")
        reference = [one.reference for one in batch if one.reference is not None]
        if reference and context.models.starts_as_reference:
            kl_N = now_N - torch.cat(reference)
            if apart(kl_N, context, times=4.0):
                mean = float(kl_N.mean())
                raise other_start(f"its KL to the reference is {mean:.4f} in place of 0")

    # --- telling

    def _tally(self, judged: ScoredGroups) -> None:
        """Keep this process's sums of what a step is measured by."""
        import torch

        from llmft_alignments.grpo import maths
        from llmft_alignments.online.statistics import power_sums

        flat = maths.without_variance(judged.rewards_B, self.items_per_prompt).double()
        lengths = [len(answer.ids) for answer in judged.answers]
        ended = [answer.ended for answer in judged.answers]
        plain = [float(len(lengths)), float(sum(lengths)), float(sum(ended))]
        self._tallies = (
            torch.tensor(plain).double(),
            torch.stack([flat.sum(), flat.new_full((), float(len(flat)))]),
            power_sums(judged.rewards_B),
            judged.scores_BR.double().sum(0),
        )
        self._entropy = []

    def step_metrics(self) -> Mapping[str, tuple[float, float]]:
        import torch

        from llmft_alignments.online.statistics import moments

        # One read of a step's passes, for which a GPU is waited for.
        entropy_2 = torch.stack(self._entropy).sum(0).cpu() if self._entropy else torch.zeros(2)
        parts = (*self._tallies, entropy_2.double())
        whole = torch.split(all_reduce_sum(torch.cat(parts)), [len(part) for part in parts])
        answers, length, ended = whole[0].tolist()
        mean, variance = (float(value) for value in moments(whole[2]))
        metrics = {
            "reward": (mean * answers, answers),
            "reward_std": (variance**0.5, 1.0),
            "frac_reward_zero_std": (float(whole[1][0]), float(whole[1][1])),
            "length": (length, answers),
            "ended": (ended, answers),
        }
        names = self.sampler.scorer.names
        if len(names) > 1:
            scores = zip(names, whole[3].tolist(), strict=True)
            metrics |= {f"rewards/{name}": (total, answers) for name, total in scores}
        means = {name: value / weight for name, (value, weight) in metrics.items()}
        entropy = float(whole[4][1]) / max(float(whole[4][0]), 1.0)
        self.watch.see({**means, "entropy": entropy}, variance)
        return metrics

    # --- going on

    def state(self) -> Mapping[str, Any]:
        return {"watch": self.watch.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.watch.restore(state["watch"])


class GrpoRule:
    """Group-relative policy optimisation (Shao et al. 2024), and the losses that came after it."""

    def __init__(self, config: GrpoConfig) -> None:
        self.config = config
        self.needs_logps = config.needs_old_logps

    def advantages(self, judged: ScoredGroups, weights_R: Sequence[float]) -> torch.Tensor:
        import torch

        from llmft_alignments.grpo import maths

        config = self.config
        if config.multi_objective_aggregation == "normalize_then_sum":
            weights = torch.tensor(weights_R).double()
            return maths.decoupled_advantages(
                judged.scores_BR, weights, config.num_generations, all_reduce_sum
            )
        return maths.group_advantages(
            judged.rewards_B, config.num_generations, config.scale_rewards, all_reduce_sum
        )

    def weight(self, batch: Sequence[GroupRollout]) -> float:
        kind = self.config.loss_type
        if kind == "dr_grpo":
            return float(len(batch) * self.config.max_completion_length)
        if kind in ("dapo", "cispo"):
            return sum(one.share for one in batch)
        return float(len(batch))

    def loss(
        self, stats: TokenStats, old_N: torch.Tensor, batch: Sequence[GroupRollout]
    ) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        import torch

        from llmft_alignments.grpo import maths

        config, row_N, logps_N = self.config, stats.row_N, stats.logps_N
        advantages_N = tensor_like([one.advantage for one in batch], logps_N)[row_N]
        learnt_N = tensor_like([float(one.learnt) for one in batch], logps_N)[row_N]
        log_ratio_N = logps_N - old_N
        if config.importance_sampling_level == "sequence":
            log_ratio_N = maths.sequence_log_ratio(log_ratio_N, row_N, len(batch))
        ratio_N = torch.exp(log_ratio_N)
        loss_N, means = self._tokens(ratio_N, logps_N, advantages_N)
        if config.beta:
            from llmft_alignments.preference_maths import k3_divergence

            reference_N = torch.cat([one.reference for one in batch if one.reference is not None])
            if config.token_kl_max is not None:  # an overflow would have 0 times infinity for slope
                reference_N = torch.minimum(reference_N, logps_N.detach() + 80.0)
            kl_N = k3_divergence(logps_N, reference_N)
            if config.token_kl_max is not None:
                kl_N = kl_N.clamp(max=config.token_kl_max)
            kl_N = kl_N * ratio_N if config.use_bias_correction_kl else kl_N
            loss_N = loss_N + config.beta * kl_N
            means["kl"] = kl_N.detach().mean()
        loss = self._summed(loss_N * learnt_N, learnt_N, row_N, batch)
        if config.entropy_coef:
            mean = (stats.entropy_N * learnt_N).sum() / learnt_N.sum().clamp(min=1)
            loss = loss - config.entropy_coef * mean * self.weight(batch)
        return loss, means

    def _tokens(
        self, ratio_N: torch.Tensor, logps_N: torch.Tensor, advantages_N: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss of each token, without KL penalty, and how many are clipped."""
        from llmft_alignments.grpo import maths

        config = self.config
        if config.loss_type == "sapo":
            heat = (config.sapo_temperature_pos, config.sapo_temperature_neg)
            return maths.sapo_loss(ratio_N, advantages_N, *heat), {}
        if config.loss_type == "cispo":
            cut_N = (ratio_N > config.high) & (advantages_N > 0)
            loss_N = maths.cispo_loss(ratio_N, logps_N, advantages_N, config.high)
            return loss_N, self._noted(clip_ratio_high=cut_N)
        low_N, high_N = maths.clipped_away(ratio_N, advantages_N, config.epsilon, config.high)
        loss_N = maths.clipped_loss(
            ratio_N, advantages_N, config.epsilon, config.high, config.delta
        )
        return loss_N, self._noted(clip_ratio_low=low_N, clip_ratio_high=high_N)

    def _noted(self, **cut_N: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the share of tokens that are clipped; of one update on its own samples, none."""
        return {name: each.double().mean() for name, each in cut_N.items() if self.needs_logps}

    def _summed(
        self,
        loss_N: torch.Tensor,
        learnt_N: torch.Tensor,
        row_N: torch.Tensor,
        batch: Sequence[GroupRollout],
    ) -> torch.Tensor:
        """Return the loss summed over a batch, as `weight` will divide it."""
        from llmft_alignments.grpo import maths

        kind, answers = self.config.loss_type, len(batch)
        if kind in ("grpo", "sapo"):
            counts_B = maths.per_answer(learnt_N, row_N, answers).clamp(min=1)
            return (maths.per_answer(loss_N, row_N, answers) / counts_B).sum()
        if kind == "bnpo":  # a mean over the tokens of each forward pass
            return loss_N.sum() / learnt_N.sum().clamp(min=1) * answers
        return loss_N.sum()
