"""The referee: the same two steps by plain transformers and PEFT, each row alone.

Nothing here is llmft's. The model is what `from_pretrained` gives, the adapter what
`PeftModel.from_pretrained` makes of the files, the losses are written out from the papers, and the
optimiser is torch's SGD.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

END = 256
"""The id that ends a text; a byte's id is the byte."""
BETA = 0.5
PPO = {"temperature": 0.7, "kl_coef": 0.05, "gamma": 1.0, "lam": 0.95, "vf_coef": 0.1,
       "cliprange": 0.2, "cliprange_value": 0.2, "epochs": 2}  # fmt: skip


@dataclass
class Answered:
    """An answer that was drawn: the prompt's ids, its own, and its score."""

    prompt: list[int]
    answer: list[int]
    score: float


@dataclass
class Case:
    """What is trained. start: the adapter's files before the first step.

    head: the scalar head's tensors before the first step, by name. drawn: PPO's answers, step by
    step. dropout: whether the adapter and the base are in training mode.
    """

    model: Path
    start: Path
    alignment: str
    rows: Sequence[Mapping[str, str]]
    rate: float
    clip: float
    dropout: bool
    head: Mapping[str, torch.Tensor] = field(default_factory=dict)
    head_rate: float | None = None
    drawn: Sequence[Sequence[Answered]] = ()


@dataclass
class Trained:
    """What came of it. losses: of each step. logps: of PPO's tokens, before each step's updates."""

    losses: list[float]
    before: dict[str, torch.Tensor]
    after: dict[str, torch.Tensor]
    logps: list[list[float]]


def trained(case: Case) -> Trained:
    """Return what two steps of a case make of the adapter and its head."""
    from peft import PeftModel, get_peft_model_state_dict
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(case.model, dtype=torch.float32)
    base.config.use_cache = False
    model = PeftModel.from_pretrained(base, case.start)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name or "prompt_encoder" in name)
    model.train(case.alignment == "sft" and case.dropout)
    heads = {name: t.clone().requires_grad_() for name, t in case.head.items()}
    adapter = [p for p in model.parameters() if p.requires_grad]
    rate = case.head_rate if case.head_rate is not None else case.rate
    optimizer = torch.optim.SGD(
        [
            {"params": adapter, "lr": case.rate},
            *([{"params": list(heads.values()), "lr": rate}] if heads else []),
        ]
    )

    def state() -> dict[str, torch.Tensor]:
        kept = get_peft_model_state_dict(model, save_embedding_layers=False)
        found = {name: t.detach().clone() for name, t in kept.items()}
        return found | {name: t.detach().clone() for name, t in heads.items()}

    def update(loss: torch.Tensor) -> float:
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*adapter, *heads.values()], case.clip)
        optimizer.step()
        return float(loss.detach())

    plain = _Plain(model)
    before, losses, logps = state(), [], []
    if case.alignment == "ppo":
        for answers in case.drawn:
            loss, told = _ppo_step(plain, heads, answers, update)
            losses.append(loss)
            logps.append(told)
    else:
        loss_of: Callable[[], torch.Tensor] = {
            "sft": lambda: _sft(plain, case.rows),
            "dpo": _dpo(plain, case.rows) if case.alignment == "dpo" else None,
            "reward": lambda: _reward(plain, heads, case.rows),
        }[case.alignment]
        losses = [update(loss_of()) for _ in range(2)]
    return Trained(losses, before, state(), logps)


class _Plain:
    """A model of plain PEFT, asked one row at a time."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.states: list[torch.Tensor] = []
        output = model.get_base_model().get_output_embeddings()
        output.register_forward_pre_hook(lambda module, given: self.states.append(given[0]))

    def row(self, ids: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a row's logits (T, V) and the states that the output layer reads (T, D)."""
        self.states.clear()
        tokens = torch.tensor([list(ids)])
        logits = self.model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
        states = self.states[-1].reshape(-1, self.states[-1].shape[-1])
        return logits[0, -len(ids) :].float(), states[-len(ids) :].float()

    def logps(self, prompt: Sequence[int], answer: Sequence[int], heat: float = 1.0) -> Any:
        """Return the log-likelihood of each token of an answer, and the states before them."""
        logits, states = self.row([*prompt, *answer])
        at = slice(len(prompt) - 1, len(prompt) + len(answer) - 1)
        logps = torch.log_softmax(logits[at] / heat, -1)
        return logps.gather(1, torch.tensor(answer)[:, None])[:, 0], states[at]

    @contextmanager
    def bare(self) -> Iterator[None]:
        """Leave the adapter out: the reference of a new adapter is its base."""
        with self.model.disable_adapter(), torch.no_grad():
            yield


def tokens(text: str) -> list[int]:
    """Return a text's ids: its bytes."""
    return list(text.encode())


def _answer(row: Mapping[str, str], which: str) -> list[int]:
    return [*tokens(row[which]), END]


def _sft(plain: _Plain, rows: Sequence[Mapping[str, str]]) -> torch.Tensor:
    """The mean over all the answers' tokens of a step."""
    parts = [plain.logps(tokens(r["prompt"]), _answer(r, "chosen"))[0] for r in rows]
    return -torch.cat(parts).mean()


def _dpo(plain: _Plain, rows: Sequence[Mapping[str, str]]) -> Callable[[], torch.Tensor]:
    """Rafailov et al. 2023, eq. 7; the reference is the base."""

    def summed() -> torch.Tensor:
        return torch.stack(
            [
                torch.stack(
                    [
                        plain.logps(tokens(r["prompt"]), _answer(r, which))[0].sum()
                        for which in ("chosen", "rejected")
                    ]
                )
                for r in rows
            ]
        )

    with plain.bare():
        reference_B2 = summed()

    def loss() -> torch.Tensor:
        gap_B2 = summed() - reference_B2
        return -F.logsigmoid(BETA * (gap_B2[:, 0] - gap_B2[:, 1])).mean()

    return loss


def _reward(
    plain: _Plain, heads: Mapping[str, torch.Tensor], rows: Sequence[Mapping[str, str]]
) -> torch.Tensor:
    """Bradley and Terry's loss of a linear head on each answer's last state."""

    def score(row: Mapping[str, str], which: str) -> torch.Tensor:
        states = plain.row([*tokens(row["prompt"]), *_answer(row, which)])[1]
        return (heads["score.weight"] @ states[-1])[0]

    return -torch.stack(
        [F.logsigmoid(score(r, "chosen") - score(r, "rejected")) for r in rows]
    ).mean()


def _value(heads: Mapping[str, torch.Tensor], states: torch.Tensor) -> torch.Tensor:
    """Two layers with a GELU between, on states that they do not move."""
    inner = F.gelu(F.linear(states.detach(), heads["value.0.weight"], heads["value.0.bias"]))
    return F.linear(inner, heads["value.2.weight"], heads["value.2.bias"])[:, 0]


def _gae(rewards: torch.Tensor, values: torch.Tensor, gamma: float, lam: float) -> torch.Tensor:
    """Schulman et al. 2016, eq. 16, of one answer; nothing comes after its last token."""
    found, running, later = [], 0.0, 0.0
    for reward, value in zip(rewards.tolist()[::-1], values.tolist()[::-1], strict=True):
        running = reward + gamma * later - value + gamma * lam * running
        later = value
        found.append(running)
    return torch.tensor(found[::-1])


def _ppo_step(
    plain: _Plain,
    heads: Mapping[str, torch.Tensor],
    answers: Sequence[Answered],
    update: Callable[[torch.Tensor], float],
) -> tuple[float, list[float]]:
    """Schulman et al. 2017, eq. 7, with the advantages of 2016 and Ziegler et al.'s penalty.

    Returns the mean loss of the step's updates, and the answers' log-likelihoods before them.
    """
    heat = PPO["temperature"]
    with torch.no_grad():
        own = [plain.logps(one.prompt, one.answer, heat) for one in answers]
        values = [_value(heads, states) for _, states in own]
    with plain.bare():
        held = [plain.logps(one.prompt, one.answer, heat)[0] for one in answers]
    rewards = []
    for one, (logps, _), reference in zip(answers, own, held, strict=True):
        reward = -PPO["kl_coef"] * (logps - reference)
        reward[-1] += one.score
        rewards.append(reward)
    # The values are shifted so that their mean is that of what was got.
    behind = [_gae(r, v, PPO["gamma"], 1.0) for r, v in zip(rewards, values, strict=True)]
    shift = torch.cat(behind).double().mean().float()
    values = [value + shift for value in values]
    gained = [_gae(r, v, PPO["gamma"], PPO["lam"]) for r, v in zip(rewards, values, strict=True)]
    old_N, old_values_N, raw_N = (torch.cat(x) for x in ([o[0] for o in own], values, gained))
    returns_N = raw_N + old_values_N
    spread = raw_N.double()
    spread = (spread - spread.mean()) / (spread.var() + 1e-8).sqrt()
    advantages_N = spread.float()
    losses = []
    for _ in range(int(PPO["epochs"])):
        now = [plain.logps(one.prompt, one.answer, heat) for one in answers]
        ratio_N = (torch.cat([logps for logps, _ in now]) - old_N).exp()
        low, high = 1 - PPO["cliprange"], 1 + PPO["cliprange"]
        policy_N = -torch.minimum(ratio_N * advantages_N, ratio_N.clamp(low, high) * advantages_N)
        values_N = torch.cat([_value(heads, states) for _, states in now])
        room = PPO["cliprange_value"]
        near_N = values_N.clamp(old_values_N - room, old_values_N + room)
        value_N = 0.5 * torch.maximum((values_N - returns_N) ** 2, (near_N - returns_N) ** 2)
        losses.append(update(policy_N.mean() + PPO["vf_coef"] * value_N.mean()))
    return sum(losses) / len(losses), old_N.tolist()
