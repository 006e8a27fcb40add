"""Kahneman-Tversky optimisation: single answers, each known to be desirable or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, takewhile
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import model_validator

from llmft.api import (
    Alignment,
    AlignmentConfig,
    DataError,
    Encoded,
    EncodedUnpaired,
    Field,
    Row,
    StageContext,
    StageResult,
    UnpairedRow,
    hookimpl,
)
from llmft.toolkit import cut_at_start, tensor_like
from llmft_alignments.pairs import over_batches, row_logps
from llmft_alignments.start import dropout_off, refuse_other_start

if TYPE_CHECKING:
    import torch

FILE, HELD_OUT = "reference.safetensors", "reference-held-out.safetensors"
BALANCE = (1.0, 4 / 3)
"""How much more the desirable answers should weigh in all than the others: TRL's range."""


class Kto(Alignment["Kto.Config"]):
    """Kahneman-Tversky optimisation (Ethayarajh et al. 2024), by TRL's names.

    Rows have one answer and a label; of preferences, both answers are taken, one desirable and one
    not. The reference is the stage's start, as for DPO; its log-likelihoods are computed once.
    """

    method = "kto"
    rows = ("unpaired", "preference")
    produces = "policy"
    supports_token_budget = False
    greater_is_better: ClassVar = {
        "reward_accuracy": True, "reward_accuracy_desirable": True,
        "reward_accuracy_undesirable": True, "reward_margin": True, "objective_loss": False,
    }  # fmt: skip

    class Config(AlignmentConfig):
        """TRL's KTOConfig, by its own names."""

        loss_type: Literal["kto", "apo_zero_unpaired"] = Field(
            "kto",
            description="kto: rewards are compared with an estimate of the KL divergence from the"
            " reference; apo_zero_unpaired: against 0",
        )
        beta: float = Field(0.1, gt=0, le=1000, description="the KL coefficient")
        desirable_weight: float = Field(
            1.0, ge=0, le=1e6, description="the weight of the loss of desirable answers"
        )
        undesirable_weight: float = Field(
            1.0, ge=0, le=1e6, description="the weight of the loss of undesirable answers"
        )
        disable_dropout: bool = Field(
            True, description="turn every dropout off, the base's and the adapter's"
        )

        @model_validator(mode="after")
        def _some_loss(self) -> Kto.Config:
            if not self.desirable_weight and not self.undesirable_weight:
                raise ValueError(
                    "desirable_weight and undesirable_weight are both 0, so that nothing is"
                    " trained; raise one"
                )
            return self

    def __init__(self, config: Kto.Config) -> None:
        super().__init__(config)
        self.held_out: list[KtoItem] = []

    def train(self, context: StageContext) -> StageResult:
        rows = context.data.encode_unpaired(context.data.rows())
        if not rows:
            raise DataError("E105", f"stage '{context.name}' has no answer to train on")
        if note := balance_note(self.config, labels_of(context.data.rows())):
            context.log.note(note)
        items = self._items(context, rows, FILE)
        if held_out := context.data.held_out():
            self.held_out = self._items(context, context.data.encode_unpaired(held_out), HELD_OUT)
        objective = KtoObjective(self.config)
        start = reference_of(items)
        refuse_other_start(context, items, start, objective.first_step)
        with dropout_off(context, self.config.disable_dropout):
            return context.fit(items, objective)

    def _items(
        self, context: StageContext, rows: Sequence[EncodedUnpaired], file: str
    ) -> list[KtoItem]:
        """Return rows with what the reference gives to them, and to their mismatched answers."""
        from llmft_alignments.dpo.reference import reference_row_logps

        others: Sequence[Encoded | None] = [None] * len(rows)
        if self.config.loss_type == "kto":
            begins = context.models.tokenizer.bos_token_id
            others = mismatched(rows, context.data.max_length, begins)
        asked = [*rows, *(row for row in others if row is not None)]
        logps = reference_row_logps(context, asked, file).tolist()
        logps += [0.0] * (2 * len(rows) - len(logps))
        return [
            KtoItem(
                row.input_ids, row.labels, row.origin, row.label,
                logps[at], others[at], logps[len(rows) + at],
            )
            for at, row in enumerate(rows)
        ]  # fmt: skip

    def evaluate(self, context: StageContext) -> Mapping[str, float | Sequence[float]]:
        """Return of the held-out answers how their rewards go with their labels.

        A reward is beta times the log-ratio to the reference. reward_accuracy: whether it is above
        0 for a desirable answer, and below for an undesirable one (0 is wrong); also of each label
        alone. reward_margin: the mean of the desirable ones less that of the others.
        objective_loss: the loss that is trained with, over batches of evaluation.
        """
        import torch

        if not self.held_out:  # none, or a method that was not trained and has no reference
            return {}
        objective, model = KtoObjective(self.config), context.models.model

        def both(items: Sequence[KtoItem]) -> torch.Tensor:
            ratio_B, kl = objective.ratios(model, items)
            return torch.stack([ratio_B, objective.losses(items, ratio_B, kl)], 1)

        found_P2 = over_batches(context, self.held_out, both, "judge answers").double()
        rewards = (self.config.beta * found_P2[:, 0]).tolist()
        of_label: dict[bool, list[float]] = {True: [], False: []}
        for item, reward in zip(self.held_out, rewards, strict=True):
            of_label[item.label].append(reward)
        right = {True: [float(r > 0) for r in of_label[True]],
                 False: [float(r < 0) for r in of_label[False]]}  # fmt: skip
        metrics: dict[str, float | Sequence[float]] = {
            "reward_accuracy": [
                float(reward > 0 if item.label else reward < 0)
                for item, reward in zip(self.held_out, rewards, strict=True)
            ],
            "objective_loss": found_P2[:, 1].tolist(),
        }
        for label, name in ((True, "desirable"), (False, "undesirable")):
            if right[label]:
                metrics[f"reward_accuracy_{name}"] = right[label]
        if all(of_label.values()):
            good, bad = (sum(of_label[label]) / len(of_label[label]) for label in (True, False))
            metrics["reward_margin"] = good - bad
        return metrics


@dataclass(frozen=True, slots=True)
class KtoItem(EncodedUnpaired):
    """An answer with the reference's summed log-likelihood of it.

    other: the prompt with another prompt's answer, of which the divergence is estimated, and the
    reference's log-likelihood of that answer; None where the loss has no such estimate.
    """

    reference: float = 0.0
    other: Encoded | None = None
    other_reference: float = 0.0


class KtoObjective:
    """The loss of answers; an optimiser step's loss is its mean over them."""

    def __init__(self, config: Kto.Config) -> None:
        self.config = config

    def first_step(
        self, items: Sequence[KtoItem], policy_B: torch.Tensor, reference_B: torch.Tensor
    ) -> str:
        """Return in words what the first step would be, and what it has to be."""
        reward = float(self.config.beta * (policy_B - reference_B).mean())
        return f"its mean reward is {reward:.3f} in place of 0"

    def ratios(
        self, model: Any, items: Sequence[KtoItem]
    ) -> tuple[torch.Tensor, torch.Tensor | float]:
        """Return log(policy / reference) of each answer, (B,), and the KL estimate, in nats.

        The estimate is the mean over the forward pass's mismatched answers, at least 0, without a
        gradient, as the paper has it.
        """
        import torch

        others = [item.other for item in items if item.other is not None]
        kl: torch.Tensor | float = 0.0
        if others:
            with torch.no_grad():
                other_B = row_logps(model, others)
            kl = (other_B - tensor_like([i.other_reference for i in items], other_B)).mean()
            kl = kl.clamp(min=0)
        policy_B = row_logps(model, items)
        return policy_B - tensor_like([item.reference for item in items], policy_B), kl

    def losses(
        self, items: Sequence[KtoItem], ratio_B: torch.Tensor, kl: torch.Tensor | float
    ) -> torch.Tensor:
        """Return the weighted loss of each answer, shape (B,)."""
        from llmft_alignments.preference_maths import kto_loss

        config = self.config
        label_B = tensor_like([float(item.label) for item in items], ratio_B)
        weights = (config.undesirable_weight, config.desirable_weight)
        weight_B = tensor_like([weights[item.label] for item in items], ratio_B)
        return weight_B * kto_loss(ratio_B, label_B, kl, config.beta)

    def weight(self, batch: Sequence[KtoItem]) -> float:
        return float(len(batch))

    def loss(self, model: Any, batch: Sequence[KtoItem]) -> tuple[torch.Tensor, dict[str, Any]]:
        ratio_B, kl = self.ratios(model, batch)
        loss_B = self.losses(batch, ratio_B, kl)
        rewards_B = self.config.beta * ratio_B.detach()
        policy_B = ratio_B.detach() + tensor_like([item.reference for item in batch], ratio_B)
        label_B = tensor_like([float(item.label) for item in batch], ratio_B)
        metrics: dict[str, Any] = {
            "rewards/accuracies": ((rewards_B * (2 * label_B - 1)) > 0).float().sum(),
            "tokens": float(sum(len(item.input_ids) for item in batch)),
        }
        if self.config.loss_type == "kto":
            metrics["kl"] = kl * len(batch)
        for name, is_B in (("chosen", label_B), ("rejected", 1 - label_B)):
            count = sum(item.label == (name == "chosen") for item in batch)
            if count:
                metrics[f"rewards/{name}"] = ((rewards_B * is_B).sum(), float(count))
                metrics[f"logps/{name}"] = ((policy_B * is_B).sum(), float(count))
        return loss_B.sum(), metrics


def reference_of(items: Sequence[KtoItem]) -> torch.Tensor:
    """Return the reference's log-likelihood of each answer, shape (R,)."""
    import torch

    return torch.tensor([item.reference for item in items])


def mismatched(rows: Sequence[Encoded], limit: int | None, begins: int | None) -> list[Encoded]:
    """Return each row's prompt with the answer of an earlier row; the first ones take the last's.

    It is the row before, as TRL pairs the rows of a batch; where neighbours share a prompt, all go
    further back by the longest such run, so that each answer belongs to another prompt. A row too
    long loses the start of its prompt. begins: the token that begins every text, and stays.
    """
    cut = [sum(1 for _ in takewhile(lambda label: label == -100, row.labels)) for row in rows]
    prompts = [row.input_ids[:at] for row, at in zip(rows, cut, strict=True)]
    runs = [len(list(same)) for _, same in groupby(prompts)]
    longest = max(runs)
    if len(runs) > 1 and prompts[0] == prompts[-1]:  # the first row's neighbour is the last
        longest = max(longest, runs[0] + runs[-1])
    back = longest if longest < len(rows) else 1
    found = []
    for at, row in enumerate(rows):
        donor, start = rows[at - back], cut[at - back]
        whole = Encoded(
            prompts[at] + donor.input_ids[start:],
            (-100,) * len(prompts[at]) + donor.labels[start:],
            row.origin,
        )
        found.append(cut_at_start(whole, limit, begins))
    return found


def labels_of(rows: Sequence[Row]) -> list[bool]:
    """Return the label of every answer in the rows; a preference has one of each."""
    found: list[bool] = []
    for row in rows:
        found += [row.label] if isinstance(row, UnpairedRow) else [True, False]
    return found


def balance_note(config: Kto.Config, labels: Sequence[bool]) -> str:
    """Return a remark where the labels' counts and weights are out of balance; else ''."""
    good = sum(labels)
    bad = len(labels) - good
    if not good or not bad:
        which = "desirable" if good else "undesirable"
        return f"all answers are {which}: nothing is learnt from the difference"
    ratio = config.desirable_weight * good / max(config.undesirable_weight * bad, 1e-9)
    if BALANCE[0] - 0.005 <= ratio <= BALANCE[1] + 0.005:
        return ""
    low, high = (b * config.undesirable_weight * bad / good for b in BALANCE)
    return (
        f"{good} answers are desirable and {bad} are not; with desirable_weight and"
        f" undesirable_weight they weigh {ratio:.2f} to 1, and 1 to 1.33 is recommended:"
        f" desirable_weight {low:.2f} to {high:.2f}"
    )


@hookimpl
def llmft_alignments() -> list[type[Kto]]:
    return [Kto]
