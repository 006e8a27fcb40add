"""Episodes: answers the policy has drawn, what each token was worth, and who scores them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmft.api import Answer, Encoded, EncodedPrompt, SamplingParams, StageContext
from llmft.toolkit import rewards, token_stats, values
from llmft_alignments.online.sampling import Sampler, rollout_row
from llmft_alignments.online.scoring import Scorer
from llmft_alignments.pairs import judging
from llmft_alignments.ppo.config import PpoConfig

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, eq=False)
class Rollout(Encoded):
    """An answer with its prompt, and of each of its T tokens what the updates read, shape (T,).

    nuclei: the ids that each token was drawn from; empty where that is all of them.
    """

    logps: Any = None
    values: Any = None
    advantages: Any = None
    returns: Any = None
    nuclei: Sequence[torch.Tensor] = ()


@dataclass(frozen=True, slots=True)
class Judged:
    """Drawn answers, scored. Tensors on the CPU, of N tokens end to end, and of B answers.

    reference_N: the reference's log-likelihoods. scores_B: before any penalty.
    """

    rows: list[Encoded]
    answers: list[Answer]
    texts: list[str]
    logps_N: torch.Tensor
    entropy_N: torch.Tensor
    values_N: torch.Tensor
    reference_N: torch.Tensor
    row_N: torch.Tensor
    scores_B: torch.Tensor


class RolloutSampler(Sampler):
    """The policy, its reference and those who score, on one base; draws answers and judges them."""

    def __init__(self, config: PpoConfig, context: StageContext) -> None:
        params = SamplingParams(config.response_length, config.temperature, config.top_p)
        super().__init__(
            context, params, config.local_rollout_forward_batch_size, config.stop_token
        )
        self.config = config
        self.model = context.models.model
        self.reference = context.models.reference_model()
        self.reward_model = (
            context.models.load_stage(config.reward_model) if config.reward_model else None
        )
        self.scorer = Scorer(context, [config.reward] if config.reward else [], self.more_stops)

    def judge(self, prompts: Sequence[EncodedPrompt], answers: list[Answer]) -> Judged:
        """Return what policy, reference and reward say about answers to the prompts."""
        import torch

        rows = [
            rollout_row(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)
        ]
        with judging(self.model):
            own, held = [], []
            for some, drawn in zip(self.batches(rows), self.batches(answers), strict=True):
                heat = self.config.temperature
                stats = token_stats(self.model, some, heat, nuclei=nuclei_of(drawn))
                own.append((stats.logps_N, stats.entropy_N, values(self.model, stats.hidden_ND)))
                held.append(token_stats(self.reference, some, heat).logps_N)
        counts = torch.tensor([row.n_labels for row in rows], dtype=torch.long)
        row_N = torch.arange(len(rows)).repeat_interleave(counts)
        # A few numbers a token, moved in one go: what becomes of them is computed by the CPU.
        columns = [(*parts, reference_N) for parts, reference_N in zip(own, held, strict=True)]
        judged_4N = torch.cat([torch.stack(c).float() for c in columns], 1).cpu() if own else (
            torch.zeros(4, 0)
        )  # fmt: skip
        logps_N, entropy_N, values_N, reference_N = judged_4N.unbind()
        texts, scores_B = self.score(prompts, rows, answers)
        return Judged(
            rows, answers, texts, logps_N, entropy_N, values_N, reference_N, row_N, scores_B
        )

    def score(
        self, prompts: Sequence[EncodedPrompt], rows: Sequence[Encoded], answers: Sequence[Answer]
    ) -> tuple[list[str], torch.Tensor]:
        """Return the answers' texts, and the reward of each, shape (B,), float32."""
        import torch

        texts, scores_BR = self.scorer.scores(prompts, rows, answers)
        scores_B = self.scorer.weighted(scores_BR)
        if self.reward_model is not None and rows:
            whole = [
                self.scorer.closed(row, answer) for row, answer in zip(rows, answers, strict=True)
            ]
            with torch.no_grad():
                found = [rewards(self.reward_model, some).cpu() for some in self.batches(whole)]
            scores_B += torch.cat(found)
        return texts, scores_B


def nuclei_of(drawn: Sequence[Answer | Rollout]) -> list[torch.Tensor] | None:
    """Return the ids that each token of a batch was drawn from; None where that is all of them."""
    return [ids for one in drawn for ids in one.nuclei] or None
