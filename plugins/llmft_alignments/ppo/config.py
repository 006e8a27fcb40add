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
        None, description="a function that scores the answers; with reward_model, both add up"
    )
    num_ppo_epochs: int = Field(
        4, ge=1, le=1000, description="how often the answers of a step are learnt from"
    )
    num_mini_batches: int = Field(
        1, ge=1, le=65_536, description="optimiser updates in each of these epochs"
    )
    num_generations: int = Field(1, ge=1, le=1024, description="answers drawn to each prompt")
    response_length: int = Field(
        53, ge=1, le=100_000, description="tokens of an answer at most, its end included"
    )
    temperature: float = Field(
        0.7, gt=0, le=100, description="of the distribution that is drawn from, and learnt"
    )
    top_p: float = Field(
        1.0, gt=0, le=1, description="of the nucleus that is drawn from, and learnt; 1: everything"
    )
    stop_token: Line | None = Field(
        None,
        description="a text that ends an answer too, such as a line break or '.': every token that"
        " ends with it does",
    )
    missing_eos_penalty: float | None = Field(
        None, ge=0, le=1e6, description="taken off the score of an answer that does not end"
    )
    kl_coef: float = Field(0.05, ge=0, le=1e6, description="the pull towards the reference")
    kl_estimator: Literal["k1", "k3"] = Field(
        "k1", description="how the divergence is estimated from a token (Schulman 2020)"
    )
    adap_kl_ctrl: bool = Field(
        False, description="move kl_coef so that the divergence comes to `target`"
    )
    target: float = Field(
        6.0, gt=0, le=1e6, description="the divergence of an answer in nats, for adap_kl_ctrl"
    )
    horizon: int = Field(
        10_000, ge=1, le=10**9, description="answers in which adap_kl_ctrl moves kl_coef by a fifth"
    )
    cliprange: float = Field(
        0.2, gt=0, le=100, description="how far an update may move a token's likelihood ratio"
    )
    cliprange_value: float = Field(
        0.2, gt=0, le=1e6, description="how far an update may move a value"
    )
    vf_coef: float = Field(0.1, ge=0, le=1e6, description="the weight of the value's loss")
    value_learning_rate: float | None = Field(
        None, gt=0, le=10, description="the value head's own learning rate; null: 0.1 / the model's"
        " width"
    )  # fmt: skip
    center_values: bool = Field(
        True, description="shift a step's values by one number, so that their mean is what followed"
    )
    entropy_coef: float = Field(0.0, ge=0, le=100, description="the weight of an entropy bonus")
    disable_dropout: bool = Field(
        True, description="turn every dropout off, the base's and the adapter's"
    )
    gamma: float = Field(1.0, gt=0, le=1, description="the discount of a later token's reward")
    lam: float = Field(0.95, ge=0, le=1, description="lambda of the generalised advantage estimate")
    whiten_advantages: bool = Field(
        True, description="give a step's advantages mean 0 and variance 1"
    )
    whiten_rewards: bool = Field(False, description="give a step's token rewards variance 1")
    reward_clip: float | None = Field(
        None, gt=0, le=1e6, description="scores are cut to this, up and down"
    )
    reward_scaling: bool = Field(
        False, description="divide scores by the standard deviation of all so far"
    )
    target_kl: float | None = Field(
        None, gt=0, le=1e6, description="no more updates in a step that has moved the policy by"
        " 1.5 times this, in nats a token"
    )  # fmt: skip
    local_rollout_forward_batch_size: int = Field(
        64, ge=1, le=65_536, description="answers drawn at a time on one device"
    )

    @model_validator(mode="after")
    def _possible(self) -> PpoConfig:
        if self.reward_model is None and self.reward is None:
            raise ValueError("nothing scores the answers; give reward_model, or reward, or both")
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
