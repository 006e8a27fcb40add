"""Episodes: answers the policy has drawn, what each token was worth, and who scores them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmft.api import (
    Answer,
    DataError,
    Encoded,
    EncodedPrompt,
    RewardFunction,
    SamplingParams,
    StageContext,
    StageError,
)
from llmft.toolkit import rewards, token_stats, values
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
    """Drawn answers, scored. Tensors of N tokens end to end, and of B answers.

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


class RolloutSampler:
    """The policy, its reference and those who score, on one base; draws answers and judges them."""

    def __init__(self, config: PpoConfig, context: StageContext) -> None:
        self.config, self.context = config, context
        self.model = context.models.model
        self.reference = context.models.reference_model()
        self.reward_model = (
            context.models.load_stage(config.reward_model) if config.reward_model else None
        )
        self.function: RewardFunction[Any] | None = None
        if config.reward is not None:
            self.function = context.reward_function(config.reward)
        self.more_stops = _stop_token(config, context)

    def sample_rollouts(
        self,
        prompts: Sequence[EncodedPrompt],
        seed: Sequence[int],
        numbers: Sequence[int],
        *,
        model: Any = None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> list[Answer]:
        """Return an answer to each prompt; numbers name their random numbers."""
        return self.context.sampler.decode(
            [prompt.input_ids for prompt in prompts],
            SamplingParams(
                self.config.response_length,
                self.config.temperature,
                self.config.top_p,
                stop_token_ids=self.more_stops,
            ),
            seed=seed,
            numbers=numbers,
            model=model,
            batch_size=self.config.local_rollout_forward_batch_size,
            stopping=stopping,
        )

    def judge(self, prompts: Sequence[EncodedPrompt], answers: list[Answer]) -> Judged:
        """Return what policy, reference and reward say about answers to the prompts."""
        import torch

        rows = [
            rollout_row(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)
        ]
        with judging(self.model):
            own, held = [], []
            for some, drawn in zip(self._batches(rows), self._batches(answers), strict=True):
                heat = self.config.temperature
                stats = token_stats(self.model, some, heat, nuclei=nuclei_of(drawn))
                own.append((stats.logps_N, stats.entropy_N, values(self.model, stats.hidden_ND)))
                held.append(token_stats(self.reference, some, heat).logps_N)
        device = next(self.model.parameters()).device
        counts = torch.tensor([row.n_labels for row in rows], dtype=torch.long, device=device)
        row_N = torch.arange(len(rows), device=device).repeat_interleave(counts)
        logps_N, entropy_N, values_N = (
            torch.cat(parts) for parts in zip(*own, strict=True)
        ) if own else (torch.zeros(0, device=device) for _ in range(3))  # fmt: skip
        reference_N = torch.cat(held) if held else torch.zeros(0, device=device)
        texts, scores_B = self.score(prompts, rows, answers)
        return Judged(
            rows, answers, texts, logps_N, entropy_N, values_N, reference_N, row_N,
            scores_B.to(device),
        )  # fmt: skip

    def score(
        self, prompts: Sequence[EncodedPrompt], rows: Sequence[Encoded], answers: Sequence[Answer]
    ) -> tuple[list[str], torch.Tensor]:
        """Return the answers' texts, and the reward of each, shape (B,), float32."""
        import torch

        tokenizer = self.context.models.tokenizer
        texts = [tokenizer.decode(answer.ids, skip_special_tokens=True) for answer in answers]
        scores_B = torch.zeros(len(rows))
        if self.reward_model is not None and rows:
            whole = [self._closed(row, answer) for row, answer in zip(rows, answers, strict=True)]
            with torch.no_grad():
                found = [rewards(self.reward_model, some).cpu() for some in self._batches(whole)]
            scores_B += torch.cat(found)
        if self.function is not None:
            facts = zip(prompts, texts, strict=True)
            given = [self.function.score(p.prompt, text, p.answers) for p, text in facts]
            _refuse_no_number(prompts, given, self.function.method)
            scores_B += torch.tensor(given, dtype=torch.float32)
        return texts, scores_B

    def _closed(self, row: Encoded, answer: Answer) -> Encoded:
        """Return a row as a reward model has learnt to read it: an answer that ended ends so."""
        end = self.context.models.tokenizer.eos_token_id
        if not self.more_stops or answer.ids[-1] not in self.more_stops or end is None:
            return row
        return Encoded((*row.input_ids, end), (*row.labels, end), row.origin)

    def _batches(self, rows: Sequence[Any]) -> Iterator[Sequence[Any]]:
        size = self.config.local_rollout_forward_batch_size
        for start in range(0, len(rows), size):
            yield rows[start : start + size]


def rollout_row(prompt: EncodedPrompt, answer: Answer) -> Encoded:
    """Return a prompt with its answer, which alone is learnt."""
    ids = (*prompt.input_ids, *answer.ids)
    return Encoded(ids, (*prompt.labels, *answer.ids), prompt.origin)


def nuclei_of(drawn: Sequence[Answer | Rollout]) -> list[torch.Tensor] | None:
    """Return the ids that each token of a batch was drawn from; None where that is all of them."""
    return [ids for one in drawn for ids in one.nuclei] or None


def _refuse_no_number(prompts: Sequence[EncodedPrompt], given: list[float], name: str) -> None:
    for prompt, reward in zip(prompts, given, strict=True):
        if not isinstance(reward, int | float) or not math.isfinite(reward):
            what = f"{prompt.origin}: the reward of '{name}' for an answer is {reward!r}"
            raise DataError("E112", what, fix="mend the reward function")


def _stop_token(config: PpoConfig, context: StageContext) -> tuple[int, ...]:
    if config.stop_token is None:
        return ()
    ids = context.models.tokenizer(config.stop_token, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise StageError(
            "E300",
            f"the stop_token {config.stop_token!r} is {len(ids)} tokens to this tokenizer",
            fix="give one that is a single token, or leave it out",
        )
    return (ids[0],)
