"""Groups of sampled answers: their scores, and what the policy and the reference say of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmft.api import Answer, Encoded, EncodedPrompt, SamplingParams, StageContext
from llmft.toolkit import token_stats
from llmft_alignments.grpo.config import GroupConfig
from llmft_alignments.online.sampling import Sampler, rollout_row
from llmft_alignments.online.scoring import Scorer
from llmft_alignments.pairs import judging

if TYPE_CHECKING:
    import torch

    from llmft.modeling.token_stats import TokenStats


@dataclass(frozen=True, slots=True, eq=False)
class GroupRollout(Encoded):
    """An answer with its prompt, and what the updates read of it.

    advantage: of every token. logps, reference: of its T tokens, when sampled, and by the
    reference, shape (T,); None where no update needs them. learnt: whether its tokens count.
    share: its part of the step's tokens that count, in an equal distribution.
    """

    advantage: float = 0.0
    logps: torch.Tensor | None = None
    reference: torch.Tensor | None = None
    learnt: bool = True
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class ScoredGroups:
    """Sampled answers, B of them, group by group, with R scores each; see GroupRollout."""

    rows: list[Encoded]
    answers: list[Answer]
    texts: list[str]
    scores_BR: torch.Tensor
    rewards_B: torch.Tensor
    logps: Sequence[torch.Tensor | None]
    reference: Sequence[torch.Tensor | None]

    def kl_of_answers(self) -> list[float]:
        """Return how far the policy is from the reference in each answer, in nats (k1)."""
        import torch

        pairs = zip(self.logps, self.reference, strict=True)
        kl = [
            (own.double() - held.double()).sum()
            for own, held in pairs
            if own is not None and held is not None
        ]
        found: list[float] = torch.stack(kl).tolist() if kl else []
        return found


class GroupSampler(Sampler):
    """The policy, its reference where there is one, and those who score, on one base.

    needs_logps: whether the answers' log-likelihoods are wanted as they are when sampled.
    """

    def __init__(self, config: GroupConfig, context: StageContext, needs_logps: bool) -> None:
        params = SamplingParams(
            config.max_completion_length, config.temperature, config.top_p, config.top_k
        )
        super().__init__(
            context, params, config.local_rollout_forward_batch_size, config.stop_token
        )
        self.config, self.needs_logps = config, needs_logps
        self.model = context.models.model
        self.reference = context.models.reference_model() if config.beta else None
        self.scorer = Scorer(
            context, config.rewards, self.more_stops, config.reward_timeout_seconds
        )

    def judge(
        self, prompts: Sequence[EncodedPrompt], answers: list[Answer], *, logps: bool | None = None
    ) -> ScoredGroups:
        """Return what the rewards, the policy and the reference say about answers to the prompts.

        logps: whether the policy is asked, in place of `needs_logps`, and then without dropout.
        """
        rows = [
            rollout_row(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)
        ]
        asked = self.needs_logps if logps is None else logps
        texts, scores_BR = self.scorer.scores(prompts, rows, answers)
        return ScoredGroups(
            rows, answers, texts, scores_BR, self.scorer.weighted(scores_BR),
            self._logps(
                self.model if asked else None,
                rows,
                logps is None and self.config.old_logps_dropout,
            ),
            self._logps(self.reference, rows),
        )  # fmt: skip

    def _logps(
        self, model: Any, rows: Sequence[Encoded], dropout: bool = False
    ) -> Sequence[torch.Tensor | None]:
        """Return the log-likelihoods of each row's answer by a model; None each without one.

        dropout: whether it stays in training mode.
        """
        import torch

        if model is None:
            return [None] * len(rows)
        found: list[torch.Tensor] = []
        with torch.no_grad() if dropout else judging(model):
            for some in self.batches(rows):
                counts = [row.n_labels for row in some]
                found += torch.split(self.stats(model, some).logps_N, counts)
        return found

    def stats(
        self, model: Any, rows: Sequence[Encoded], *, entropy_gradient: bool = False
    ) -> TokenStats:
        """Return the stats of every sampled token; answers to one prompt share its computation."""
        shared = shared_prompts(rows) if self.context.models.shares_prompts else None
        heat = self.config.temperature
        return token_stats(model, rows, heat, entropy_gradient=entropy_gradient, shared=shared)


def learnt_of(answers: Sequence[Answer], config: GroupConfig) -> list[bool]:
    """Return which answers are learnt from."""
    return [answer.ended or not config.mask_truncated_completions for answer in answers]


def shared_prompts(rows: Sequence[Encoded]) -> list[tuple[int, int]]:
    """Return, for each row, an earlier row with the same prompt and the prompt's tokens, or (0, 0).

    Only neighbours are looked at: the answers of a group stand together.
    """
    found: list[tuple[int, int]] = []
    first = 0
    for number, row in enumerate(rows):
        n = len(row.input_ids) - row.n_labels
        alike = number > 0 and rows[first].input_ids[:n] == row.input_ids[:n]
        alike = alike and len(rows[first].input_ids) - rows[first].n_labels == n
        first = first if alike else number
        found.append((first, n) if alike else (0, 0))
    return found
