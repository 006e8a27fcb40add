"""Proximal policy optimisation: answers are drawn, scored, and the better ones made likelier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from llmft.api import (
    Alignment,
    EncodedPrompt,
    StageContext,
    StageResult,
    TrainSettings,
    hookimpl,
)
from llmft.toolkit import (
    add_value_head,
    load_value_head,
    save_value_head,
    value_parameters,
)
from llmft_alignments.ppo.config import PpoConfig
from llmft_alignments.start import dropout_off

HELD_OUT = 2**31
"""In the place of a step, so that no answer of an evaluation is drawn like one of training."""


class Ppo(Alignment[PpoConfig]):
    """Proximal policy optimisation (Schulman et al. 2017) of answers, with one base in memory.

    The policy is the stage's adapter; the reference is its start: the adapter that `start_from`
    names, else the base alone. Values come from a head on the policy's states, saved beside it.
    """

    method = "ppo"
    Config = PpoConfig
    rows = ("prompt", "completion")
    produces = "policy"
    supports_token_budget = False
    supports_shard_base = False
    supports_length_groups = False
    evaluate_generates = True
    greater_is_better: ClassVar = {"reward": True, "win_rate": True, "kl": False}

    def __init__(self, config: PpoConfig) -> None:
        super().__init__(config)
        self._sampler: Any = None
        self._held_out: Any = None

    def train(self, context: StageContext) -> StageResult:
        from llmft_alignments.online.diagnostics import Diagnostics
        from llmft_alignments.ppo.objective import PpoObjective

        prompts = context.data.encode_prompts(context.data.rows(), self.max_new_tokens())
        sampler = self._sampler_of(context)
        target = self.config.target if self.config.adap_kl_ctrl else None
        watch = Diagnostics(context.log.note, target, self.config.nucleus_kl)
        objective = PpoObjective(self.config, sampler, watch, context.seed)
        with dropout_off(context, self.config.disable_dropout):
            result = context.fit_online(prompts, objective)
        watch.conclude(result.before, result.after)
        return result

    def evaluate(self, context: StageContext) -> Mapping[str, float | Sequence[float]]:
        """Return the mean reward, KL, length and share of ended answers, and wins over the start.

        Answers are drawn as in training, to held-out prompts, policy's and reference's by the same
        random numbers. win_rate: how often the policy's gets more; a tie is half a win.
        """
        if not context.data.held_out():
            return {}
        sampler = self._sampler_of(context)
        prompts, of_reference = self._judged_start(context)
        numbers = range(len(prompts))
        answers = sampler.sample_rollouts(prompts, (HELD_OUT,), numbers)
        judged = sampler.judge(prompts, answers)
        from llmft_alignments.ppo import maths

        kl_N = maths.kl_estimates(judged.logps_N, judged.reference_N, "k1").double()
        gap_B = (judged.scores_B.cpu() - of_reference).sign().double()
        context.log.add_samples(
            [
                {
                    "prompt": prompt.prompt,
                    "answer": text,
                    "right": list(prompt.answers),
                    "reward": s,
                }
                for prompt, text, s in zip(
                    prompts, judged.texts, judged.scores_B.tolist(), strict=True
                )
            ]
        )
        row_N = judged.row_N.to(kl_N.device)
        kl_B = kl_N.new_zeros(len(prompts)).index_add(0, row_N, kl_N)
        return {
            "reward": judged.scores_B.double().tolist(),
            "kl": kl_B.tolist(),
            "win_rate": ((gap_B + 1) / 2).tolist(),
            "length": row_N.bincount(minlength=len(prompts)).double().tolist(),
            "ended": [float(answer.ended) for answer in answers],
        }

    def _judged_start(self, context: StageContext) -> tuple[list[EncodedPrompt], Any]:
        """Return the held-out prompts, and the rewards of the reference's answers to them."""
        if self._held_out is None:
            from llmft_alignments.online.sampling import rollout_row

            sampler = self._sampler_of(context)
            prompts = context.data.encode_prompts(context.data.held_out(), self.max_new_tokens())
            numbers = range(len(prompts))
            answers = sampler.sample_rollouts(
                prompts, (HELD_OUT,), numbers, model=sampler.reference
            )
            rows = [rollout_row(p, a) for p, a in zip(prompts, answers, strict=True)]
            self._held_out = (prompts, sampler.score(prompts, rows, answers)[1])
        found: tuple[list[EncodedPrompt], Any] = self._held_out
        return found

    def _sampler_of(self, context: StageContext) -> Any:
        from llmft_alignments.ppo.rollouts import RolloutSampler

        if self._sampler is None:
            self._sampler = RolloutSampler(self.config, context)
        return self._sampler

    def max_new_tokens(self) -> int:
        # A reward model reads one more after a stop_token.
        return self.config.response_length + (self.config.stop_token is not None)

    def smoke_overrides(self) -> Mapping[str, Any]:
        most = {"response_length": 8, "num_generations": 2, "num_ppo_epochs": 2}
        return {name: min(getattr(self.config, name), value) for name, value in most.items()}

    def extend(self, model: Any) -> None:
        add_value_head(model)

    def parameter_groups(self, model: Any, train: TrainSettings) -> Sequence[Mapping[str, Any]]:
        # Adam moves a layer's output in proportion to its inputs (Yang et al. 2022, muP).
        width = model.get_output_embeddings().weight.shape[-1]
        rate = self.config.value_learning_rate or 0.1 / width
        return [{"params": value_parameters(model), "lr": rate}]

    def save(self, model: Any, folder: Path) -> None:
        save_value_head(model, folder)

    def load(self, model: Any, folder: Path) -> None:
        load_value_head(model, folder)


@hookimpl
def llmft_alignments() -> list[type[Ppo]]:
    return [Ppo]
