"""The settings of proximal policy optimisation: TRL's PPOConfig, by its own names."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import SerializeAsAny, model_validator

from llmft.api import AlignmentConfig, Field, Line, RewardConfig, StageRef


class PpoConfig(AlignmentConfig):
    """TRL's PPOConfig, by its own names."""

    reward_model: Annotated[Line, StageRef("reward_model")] | None = Field(
        None, description="the stage whose reward model scores the answers"
    )
    reward: SerializeAsAny[RewardConfig] | None = Field(
        None, description="a function that scores the answers; added to the reward model's score"
    )
    num_ppo_epochs: int = Field(
        4, ge=1, le=1000, description="passes over the rollouts of a step (epochs)"
    )
    num_mini_batches: int = Field(
        1, ge=1, le=65_536, description="optimiser updates in each of these epochs"
    )
    num_generations: int = Field(1, ge=1, le=1024, description="answers sampled for each prompt")
    response_length: int = Field(
        53, ge=1, le=100_000, description="the most tokens in an answer, end of sequence included"
    )
    temperature: float = Field(
        0.7, gt=0, le=100, description="the temperature of the policy, in sampling and in the loss"
    )
    top_p: float = Field(
        1.0, gt=0, le=1, description="nucleus sampling, also in the loss; 1: all tokens"
    )
    stop_token: Line | None = Field(
        None,
        description="a text that ends an answer too, such as a line break or '.': every token that"
        " ends with it does",
    )
    missing_eos_penalty: float | None = Field(
        None, ge=0, le=1e6, description="subtracted from the score of an answer without an end"
    )
    kl_coef: float = Field(0.05, ge=0, le=1e6, description="the KL coefficient")
    kl_estimator: Literal["k1", "k3"] = Field(
        "k1", description="the estimator of the KL divergence (Schulman 2020)"
    )
    adap_kl_ctrl: bool = Field(
        False, description="adapt kl_coef so that the KL divergence approaches `target`"
    )
    target: float = Field(
        6.0,
        gt=0,
        le=1e6,
        description="the KL divergence of an answer in nats that adap_kl_ctrl aims at",
    )
    horizon: int = Field(
        10_000,
        ge=1,
        le=10**9,
        description="answers in which adap_kl_ctrl changes kl_coef by a fifth",
    )
    cliprange: float = Field(
        0.2, gt=0, le=100, description="clipping range of a token's probability ratio"
    )
    cliprange_value: float = Field(0.2, gt=0, le=1e6, description="clipping range of a value")
    vf_coef: float = Field(0.1, ge=0, le=1e6, description="the weight of the value loss")
    value_learning_rate: float | None = Field(
        None, gt=0, le=10, description="the value head's own learning rate; null: 0.1 / the model's"
        " width"
    )  # fmt: skip
    center_values: bool = Field(
        True,
        description="shift a step's values by a constant, so that their mean is the mean return",
    )
    entropy_coef: float = Field(0.0, ge=0, le=100, description="the weight of an entropy bonus")
    disable_dropout: bool = Field(
        True, description="turn every dropout off, the base's and the adapter's"
    )
    gamma: float = Field(1.0, gt=0, le=1, description="the discount factor of later rewards")
    lam: float = Field(0.95, ge=0, le=1, description="lambda of the generalised advantage estimate")
    whiten_advantages: bool = Field(
        True, description="give a step's advantages mean 0 and variance 1"
    )
    whiten_rewards: bool = Field(False, description="give a step's token rewards variance 1")
    reward_clip: float | None = Field(
        None, gt=0, le=1e6, description="clip scores to between -reward_clip and reward_clip"
    )
    reward_scaling: bool = Field(
        False, description="divide scores by the running standard deviation"
    )
    target_kl: float | None = Field(
        None, gt=0, le=1e6, description="early stopping: no more updates in a step after the policy"
        " has moved by 1.5 times this KL divergence, in nats a token"
    )  # fmt: skip
    local_rollout_forward_batch_size: int = Field(
        64, ge=1, le=65_536, description="answers sampled at a time on one device"
    )

    @model_validator(mode="after")
    def _possible(self) -> PpoConfig:
        if self.reward_model is None and self.reward is None:
            raise ValueError("nothing scores the answers; set reward_model, reward, or both")
        if self.adap_kl_ctrl and self.target <= self.nucleus_kl:
            raise ValueError(
                f"by a top_p of {self.top_p} alone, an answer may lie {self.nucleus_kl:.1f} nats"
                f" from the reference, and no kl_coef brings it to a target of {self.target};"
                " raise target, or leave top_p out"
            )
        return self

    @property
    def nucleus_kl(self) -> float:
        """What the divergence of a policy that is the reference may be, in nats an answer.

        Its tokens are drawn from nuclei, and the reference is whole: -log(top_p) a token at most.
        """
        return -math.log(self.top_p) * self.response_length
