"""What a step of PPO does: draw answers, judge them, and learn from them in minibatches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llmft.api import EncodedPrompt
from llmft.toolkit import all_reduce_sum, tensor_like, token_stats, values
from llmft_alignments.online.diagnostics import Diagnostics
from llmft_alignments.online.sampling import sample_groups
from llmft_alignments.ppo.config import PpoConfig
from llmft_alignments.ppo.rollouts import Judged, Rollout, RolloutSampler, nuclei_of
from llmft_alignments.start import apart, other_start

if TYPE_CHECKING:
    import torch

MEASURED = ("reward", "score", "kl", "rlhf_reward", "length", "ended")
"""Means over a step's answers."""


class PpoObjective:
    """PPO as an online objective: see `llmft.api.OnlineObjective`."""

    def __init__(
        self, config: PpoConfig, sampler: RolloutSampler, watch: Diagnostics, seed: int
    ) -> None:
        self.config, self.sampler, self.watch, self.seed = config, sampler, watch, seed
        self.items_per_prompt = config.num_generations
        self.rates_per_step = 1  # as TRL's trainer: after all updates of a step
        self.kl_coef = config.kl_coef
        self.scale_sums = [0.0, 0.0, 0.0]
        self._tallies: Any = None
        self._first = False

    # --- drawing

    def sample_rollouts(
        self,
        prompts: Sequence[EncodedPrompt],
        numbers: Sequence[int],
        step: int,
        stopping: Callable[[], bool],
    ) -> list[Rollout]:
        repeated, answers = sample_groups(
            self.sampler, prompts, numbers, self.items_per_prompt, step, stopping
        )
        judged = self.sampler.judge(repeated, answers)
        self._first = step == 0
        if self._first:
            self._refuse_other_start(judged)
        return self.rollouts(judged)

    def _refuse_other_start(self, judged: Judged) -> None:
        """Raise StageError where the policy, not yet trained, is not its reference."""
        context = self.sampler.context
        if self.config.top_p < 1 or not context.models.starts_as_reference:
            return
        kl_N = judged.logps_N - judged.reference_N
        if apart(kl_N, context):
            raise other_start(f"its KL to the reference is {float(kl_N.mean()):.4f} in place of 0")

    def rollouts(self, judged: Judged) -> list[Rollout]:
        """Return judged answers with what each token was worth; all processes take part."""
        import torch

        from llmft_alignments.online import statistics
        from llmft_alignments.ppo import maths

        config, row_N = self.config, judged.row_N
        ended_B = torch.tensor([a.ended for a in judged.answers])
        scores_B = judged.scores_B - (config.missing_eos_penalty or 0.0) * (~ended_B.bool())
        if config.reward_scaling:
            scores_B = scores_B / self._spread(statistics.power_sums(scores_B))
        if config.reward_clip is not None:
            scores_B = scores_B.clamp(-config.reward_clip, config.reward_clip)
        kl_N = maths.kl_estimates(judged.logps_N, judged.reference_N, config.kl_estimator)
        rewards_N = maths.token_rewards(scores_B, kl_N, row_N, self.kl_coef)
        if config.whiten_rewards:
            sums = all_reduce_sum(statistics.power_sums(rewards_N))
            rewards_N = statistics.whiten(rewards_N, sums, shift_mean=False)
        values_N = judged.values_N
        if config.center_values:
            # Values behind by b leave b (gamma lam)^(tokens to the end) in each advantage.
            behind_N = maths.gae(rewards_N, values_N, row_N, config.gamma, lam=1.0)
            mean = statistics.moments(all_reduce_sum(statistics.power_sums(behind_N)))[0]
            values_N = values_N + mean.to(values_N.dtype)
        advantages_N = maths.gae(rewards_N, values_N, row_N, config.gamma, config.lam)
        returns_N = advantages_N + values_N
        self._tally(judged, scores_B, ended_B, kl_N, returns_N)
        if config.whiten_advantages:
            advantages_N = statistics.whiten(
                advantages_N, all_reduce_sum(statistics.power_sums(advantages_N))
            )
        counts = [row.n_labels for row in judged.rows]
        columns = (judged.logps_N, values_N, advantages_N, returns_N)
        cut = (torch.split(column, counts) for column in columns)
        return [
            Rollout(
                row.input_ids, row.labels, row.origin,
                logps_T, values_T, advantages_T, returns_T, answer.nuclei,
            )
            for row, answer, logps_T, values_T, advantages_T, returns_T in zip(
                judged.rows, judged.answers, *cut, strict=True
            )
        ]  # fmt: skip

    def _spread(self, sums: torch.Tensor) -> float:
        """Return the standard deviation of all scores so far, these too; 1 where it is 0."""
        from llmft_alignments.online import statistics

        whole = all_reduce_sum(sums) + sums.new_tensor(self.scale_sums)
        self.scale_sums = whole.tolist()
        return float(statistics.moments(whole)[1]) ** 0.5 or 1.0

    # --- learning

    def updates(self, items: int, step: int) -> Iterator[list[int]]:
        import numpy as np

        for epoch in range(self.config.num_ppo_epochs):
            order = np.random.default_rng((self.seed, step, epoch)).permutation(items)
            for part in np.array_split(order, self.config.num_mini_batches):
                if len(part):
                    yield part.tolist()
                    self._first = False

    def should_continue(self, means: Mapping[str, float]) -> bool:
        most = self.config.target_kl
        return most is None or means["approx_kl"] <= 1.5 * most

    def weight(self, batch: Sequence[Rollout]) -> float:
        return float(sum(len(episode.logps) for episode in batch))

    def _refuse_moved(self, moved_N: torch.Tensor) -> None:
        """Raise StageError where a policy that has learnt nothing has another ratio than 1."""
        # The answers were judged in other batches, which rounds otherwise.
        if apart(moved_N, self.sampler.context, times=4.0):
            ratio = float(moved_N.exp().mean())
            raise other_start(f"its ratio to itself is {ratio:.4f} in place of 1")

    def loss(
        self, model: Any, batch: Sequence[Rollout]
    ) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        import torch

        from llmft_alignments.ppo import maths

        config = self.config
        stats = token_stats(
            model,
            batch,
            config.temperature,
            entropy_gradient=config.entropy_coef > 0,
            nuclei=nuclei_of(batch),
        )
        columns = [
            torch.cat([getattr(episode, name) for episode in batch])
            for name in ("logps", "values", "advantages", "returns")
        ]
        old_logps_N, old_values_N, advantages_N, returns_N = tensor_like(
            torch.stack(columns), stats.logps_N
        )
        if self._first and self.config.disable_dropout:
            self._refuse_moved(stats.logps_N.detach() - old_logps_N)
        policy_N, clipped_N = maths.policy_loss(
            stats.logps_N, old_logps_N, advantages_N, config.cliprange
        )
        value_N, value_clipped_N = maths.value_loss(
            values(model, stats.hidden_ND), old_values_N, returns_N, config.cliprange_value
        )
        loss = policy_N.sum() + config.vf_coef * value_N.sum()
        if config.entropy_coef:
            loss = loss - config.entropy_coef * stats.entropy_N.sum()
        with torch.no_grad():
            moved_N = maths.approx_kl(stats.logps_N, old_logps_N)
            ratio_N = torch.exp(stats.logps_N - old_logps_N)
            noted = {
                "policy_loss": policy_N, "value_loss": value_N, "approx_kl": moved_N,
                "ratio": ratio_N, "clipfrac": clipped_N, "clipfrac_value": value_clipped_N,
            }  # fmt: skip
        return loss, {name: x.double().sum() for name, x in noted.items()}

    # --- telling

    def _tally(
        self,
        judged: Judged,
        scores_B: torch.Tensor,
        ended_B: torch.Tensor,
        kl_N: torch.Tensor,
        returns_N: torch.Tensor,
    ) -> None:
        """Keep this process's sums of what a step is measured by."""
        import torch

        from llmft_alignments.online import statistics
        from llmft_alignments.ppo import maths

        answers = float(len(judged.rows))
        # k3 has rare outliers over a whole answer: what is reported, and controlled by, is k1.
        kl = maths.kl_estimates(judged.logps_N, judged.reference_N, "k1").double().sum()
        penalty = self.kl_coef * kl_N.double().sum()
        total = scores_B.double().sum()
        means = (
            judged.scores_B.double().sum(), total, kl, total - penalty,
            torch.tensor(float(len(judged.row_N))), ended_B.double().sum(),
        )  # fmt: skip
        self._tallies = (
            torch.stack([torch.tensor(answers), *(m.cpu().double() for m in means)]).double(),
            statistics.power_sums(judged.entropy_N).cpu(),
            statistics.power_sums(returns_N - judged.values_N).cpu(),
            statistics.power_sums(returns_N).cpu(),
            statistics.power_sums(judged.scores_B).cpu(),
        )

    def step_metrics(self) -> Mapping[str, tuple[float, float]]:
        import torch

        from llmft_alignments.online import statistics
        from llmft_alignments.ppo import maths

        sizes = [len(tally) for tally in self._tallies]
        whole = torch.split(all_reduce_sum(torch.cat(self._tallies)), sizes)
        answers = float(whole[0][0])
        found = dict(zip(MEASURED, whole[0][1:].tolist(), strict=True))
        metrics = {name: (value, answers) for name, value in found.items()}
        metrics["entropy"] = (float(whole[1][1]), float(whole[1][0]))
        metrics["explained_variance"] = (maths.explained_variance(whole[2], whole[3]), 1.0)
        metrics["kl_coef"] = (self.kl_coef, 1.0)
        means = {name: value / weight for name, (value, weight) in metrics.items()}
        self.watch.see(means, float(statistics.moments(whole[4])[1]))
        if self.config.adap_kl_ctrl:
            self.kl_coef = maths.adapted_kl_coef(
                self.kl_coef, means["kl"], self.config.target, int(answers), self.config.horizon
            )
        return metrics

    # --- going on

    def state(self) -> Mapping[str, Any]:
        return {
            "kl_coef": self.kl_coef,
            "scale_sums": self.scale_sums,
            "watch": self.watch.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self.kl_coef, self.scale_sums = state["kl_coef"], list(state["scale_sums"])
        self.watch.restore(state["watch"])
