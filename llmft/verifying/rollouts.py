"""A step's sampled answers, written down by llmft and handed to TRL's GRPOTrainer as they are.

TRL tokenises the prompts, and computes advantages, log-likelihoods and the loss by itself. From
llmft's side come the ids of the answers, their scores, and the order of the forward passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from llmft.recipes.job import BoundStage

_NAMES = (
    "beta", "epsilon", "epsilon_high", "delta", "loss_type", "scale_rewards",
    "multi_objective_aggregation", "importance_sampling_level", "mask_truncated_completions",
    "use_bias_correction_kl", "sapo_temperature_pos", "sapo_temperature_neg", "entropy_coef",
    "num_generations", "max_completion_length", "temperature", "top_p", "top_k",
    "disable_dropout",
)  # fmt: skip


def no_counterpart(alignment: Any) -> str:
    """Return why TRL's GRPO has nothing that such settings could be held against; '' if it has."""
    if alignment.num_iterations * alignment.steps_per_generation > 1:
        return (
            "its trainer moves the learning rate with each of several updates on the same answers,"
            " and mixes the groups (num_iterations, steps_per_generation)"
        )
    if alignment.mask_truncated_completions and alignment.stop_token is not None:
        return "its trainer knows no stop_token, by which an answer has an end"
    return ""


class Listener:
    """Writes down what an online objective samples, and the scores that its rewards give.

    told: gets `rows`, of each step its answers, and `orders`, of each step their numbers as they
    are learnt from. written: what is written of an answer.
    """

    def __init__(self, told: dict[str, Any], written: Callable[[Any], dict[str, Any]]) -> None:
        self.told, self.written = told, written
        told["norms"] = []
        self._columns: list[list[float]] = []

    def reward(self, function: Any) -> Any:
        """Return a reward function whose scores are written down."""
        score = function.score_batch

        def scored(batch: Any) -> Any:
            found = list(score(batch))
            self._columns.append([float(one) for one in found])
            return found

        function.score_batch = scored
        return function

    def listen(self, online: Any) -> None:
        """Listen to an objective from now on."""
        self.told["rows"], self.told["orders"] = [], []
        sample, updates = online.sample_rollouts, online.updates

        def sampled(prompts: Any, numbers: Any, step: int, stopping: Any) -> Any:
            self._columns.clear()
            found = sample(prompts, numbers, step, stopping)
            scores = list(zip(*self._columns, strict=True))
            rows = [self.written(item) for item in found]
            self.told["rows"].append(
                [{**row, "scores": list(own)} for row, own in zip(rows, scores, strict=True)]
            )
            return found

        def ordered(items: int, step: int) -> Iterator[Sequence[int]]:
            for numbers in updates(items, step):
                self.told["orders"].append([int(number) for number in numbers])
                yield numbers

        online.sample_rollouts, online.updates = sampled, ordered


class Replay:
    """Hands TRL's trainer the answers and scores of each step, in place of sampling."""

    def __init__(self, told: Mapping[str, Any], group: int) -> None:
        self.steps, self.orders, self.group = told["rows"], told["orders"], group
        self.at = -1
        self.encoded: list[tuple[list[list[int]], list[list[int]]]] = []

    def prompts(self) -> list[dict[str, Any]]:
        """Return the rows of TRL's data set: each prompt once, in order."""
        return [
            {"prompt": row["record"]["prompt"]}
            for step in self.steps
            for row in step[:: self.group]
        ]

    def rollouts(self, prompts: Sequence[Any], trainer: Any) -> dict[str, Any]:
        """Return a step's answers after the prompts as TRL tokenises them (`rollout_func`)."""
        self.at += 1
        asked = trainer._tokenize_prompts(list(prompts))[0]
        step = self.steps[self.at]
        answers = [
            row["ids"][0][sum(label == -100 for label in row["labels"][0]) :] for row in step
        ]
        for prompt, answer in zip(asked, answers, strict=True):
            labels = [-100] * len(prompt) + answer
            self.encoded.append(([[*prompt, *answer]], [labels]))
        return {"prompt_ids": asked, "completion_ids": answers, "logprobs": None}

    def rewards(self, names: Sequence[str]) -> list[Callable[..., list[float]]]:
        """Return reward functions of these names, which give the scores that were written down."""

        def of(number: int, name: str) -> Callable[..., list[float]]:
            def scores(**_: Any) -> list[float]:
                return [float(row["scores"][number]) for row in self.steps[self.at]]

            scores.__name__ = name
            return scores

        return [of(number, name) for number, name in enumerate(names)]

    def in_order(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return a step's tensors in the order in which llmft learns from the answers.

        It stands for TRL's shuffling, for a forward pass has the same answers then.
        """
        import torch

        order = self.orders[self.at]
        return {
            name: value[torch.tensor(order, device=value.device)]
            if isinstance(value, torch.Tensor) and value.dim()
            else value
            for name, value in batch.items()
        }


def trainer(
    bound: BoundStage, told: Mapping[str, Any], common: Mapping[str, Any], names: Mapping[str, Any]
) -> tuple[Replay, dict[str, Any], dict[str, Any]]:
    """Return the replay, GRPOConfig's arguments, and further arguments of the trainer.

    common: the arguments of every trainer. names: arguments of the chat template.
    """
    from datasets import Dataset
    from trl.trainer import grpo_trainer

    alignment: Any = bound.spec.alignment
    replay = Replay(told, alignment.num_generations)
    grpo_trainer.shuffle_sequence_dict = replay.in_order
    more = {name: getattr(alignment, name) for name in _NAMES}
    passes = common["gradient_accumulation_steps"] * alignment.num_generations
    arguments = {
        **{name: value for name, value in common.items() if name != "max_length"}, **more,
        "gradient_accumulation_steps": passes, "shuffle_dataset": False,
        "reward_weights": [float(reward.weight) for reward in alignment.rewards],
        "chat_template_kwargs": dict(names), "remove_unused_columns": False,
    }  # fmt: skip
    rewards = replay.rewards([reward.method for reward in alignment.rewards])
    return replay, arguments, {
        "train_dataset": Dataset.from_list(replay.prompts()),
        "reward_funcs": rewards, "rollout_func": replay.rollouts,
    }  # fmt: skip
