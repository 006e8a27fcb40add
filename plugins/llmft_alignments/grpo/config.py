"""The settings of group-relative methods: TRL's GRPOConfig and RLOOConfig, by their own names."""

from __future__ import annotations

from typing import Literal

from pydantic import SerializeAsAny, model_validator

from llmft.api import AlignmentConfig, Field, Line, RewardConfig


class GroupConfig(AlignmentConfig):
    """What GRPO and RLOO share: sampling, rewards, and the updates of a step."""

    rewards: list[SerializeAsAny[RewardConfig]] = Field(
        min_length=1, max_length=32,
        description="what scores the answers; the scores are added, each times its weight",
    )  # fmt: skip
    reward_timeout_seconds: float | None = Field(
        60.0, gt=0, le=86_400, description="the most time that one reward may take for a step's"
        " answers; null: no limit"
    )  # fmt: skip
    num_generations: int = Field(
        8, ge=2, le=1024, description="answers sampled for each prompt: a group"
    )
    max_completion_length: int = Field(
        512, ge=1, le=100_000, description="the most tokens in an answer, end of sequence included"
    )
    temperature: float = Field(
        1.0, gt=0, le=100, description="the temperature of the policy, in sampling and in the loss"
    )
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus sampling; 1: all tokens")
    top_k: int = Field(0, ge=0, le=1_000_000, description="top-k sampling; 0: all tokens")
    stop_token: Line | None = Field(
        None,
        description="a text that ends an answer too, such as a line break or '.': every token that"
        " ends with it does",
    )
    num_iterations: int = Field(
        1, ge=1, le=1000, description="passes over the rollouts of a step (epochs)"
    )
    steps_per_generation: int = Field(
        1, ge=1, le=65_536, description="optimiser updates in each of these iterations, of whole"
        " groups each"
    )  # fmt: skip
    beta: float = Field(
        0.0, ge=0, le=1e6, description="the KL coefficient; 0: no reference model is held"
    )
    epsilon: float = Field(
        0.2, gt=0, le=100, description="clipping range of a probability ratio below 1, and above it"
        " unless epsilon_high is set"
    )  # fmt: skip
    epsilon_high: float | None = Field(
        None,
        gt=0,
        le=100,
        description="clipping range of a probability ratio above 1 (clip-higher)",
    )
    mask_truncated_completions: bool = Field(
        False, description="learn nothing from an answer without an end"
    )
    disable_dropout: bool = Field(
        True, description="turn every dropout off, the base's and the adapter's"
    )
    old_logps_dropout: bool = Field(
        False, description="compute the old log-probabilities with dropout, and for a step's first"
        " update too, whose ratio is then near 1 and not 1: TRL does so in some cases, ms-swift in"
        " all"
    )  # fmt: skip
    local_rollout_forward_batch_size: int = Field(
        64, ge=1, le=65_536, description="answers sampled at a time on one device"
    )

    @model_validator(mode="after")
    def _has_dropout(self) -> GroupConfig:
        if self.old_logps_dropout and self.disable_dropout:
            raise ValueError(
                "old_logps_dropout has an effect only with disable_dropout: false; remove it"
            )
        return self

    @property
    def high(self) -> float:
        """The clipping range above 1."""
        return self.epsilon if self.epsilon_high is None else self.epsilon_high

    @property
    def several_updates(self) -> bool:
        """Whether the policy moves between two updates on the same rollouts."""
        return self.num_iterations * self.steps_per_generation > 1

    @property
    def needs_old_logps(self) -> bool:
        """Whether an update is held against other log-likelihoods than its own."""
        return self.several_updates or self.old_logps_dropout


class GrpoConfig(GroupConfig):
    """TRL's GRPOConfig, by its own names."""

    loss_type: Literal["grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo"] = Field(
        "dapo", description="the loss of a token, and by what the sum of tokens is divided"
    )
    scale_rewards: Literal["group", "batch", "none"] = Field(
        "group", description="by which standard deviation advantages are divided: that of the"
        " group, or of the whole step"
    )  # fmt: skip
    multi_objective_aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = Field(
        "sum_then_normalize", description="whether rewards are added before or after they are"
        " normalised within their group"
    )  # fmt: skip
    importance_sampling_level: Literal["token", "sequence"] = Field(
        "token", description="the probability ratio of each token, or the geometric mean of an"
        " answer's (GSPO)"
    )  # fmt: skip
    delta: float | None = Field(
        None, gt=0, le=1e6, description="an upper bound on the ratio itself (two-sided clipping)"
    )
    sapo_temperature_pos: float = Field(
        1.0, gt=0, le=1e6, description="of sapo: the gate's temperature for advantages above 0"
    )
    sapo_temperature_neg: float = Field(
        1.05, gt=0, le=1e6, description="of sapo: the gate's temperature for other advantages"
    )
    use_bias_correction_kl: bool = Field(
        True, description="weigh the KL divergence by the probability ratio"
    )
    token_kl_max: float | None = Field(
        None, gt=0, le=1e6, description="the most that the KL divergence of one token counts, in"
        " nats, so that a far token has no gradient of it; 10 in verl and ms-swift"
    )  # fmt: skip
    entropy_coef: float = Field(0.0, ge=0, le=100, description="the weight of an entropy bonus")

    @model_validator(mode="after")
    def _possible(self) -> GrpoConfig:
        # Not what is written: a resolved recipe has every default written out.
        fields = type(self).model_fields
        said = {name for name in fields if getattr(self, name) != fields[name].default}
        if self.loss_type == "cispo" and self.epsilon_high is None:
            raise ValueError(
                "loss_type 'cispo' caps the probability ratio itself at epsilon_high; set it, such"
                " as epsilon_high: 5.0"
            )
        if self.loss_type in ("cispo", "sapo") and self.delta is not None:
            raise ValueError(
                f"delta bounds the ratio of clipped losses, and loss_type '{self.loss_type}' is"
                " none; remove it"
            )
        if self.loss_type != "sapo" and (
            given := {"sapo_temperature_pos", "sapo_temperature_neg"} & said
        ):
            raise ValueError(f"{min(given)} has an effect only with loss_type: sapo; remove it")
        if self.loss_type not in ("grpo", "sapo") and self.importance_sampling_level == "sequence":
            raise ValueError(
                f"loss_type '{self.loss_type}' adds up tokens, and importance_sampling_level"
                " 'sequence' has one ratio an answer; write loss_type: grpo"
            )
        if self.multi_objective_aggregation == "normalize_then_sum" and "scale_rewards" in said:
            raise ValueError(
                "multi_objective_aggregation 'normalize_then_sum' normalises by itself, so that"
                " scale_rewards has no effect; remove it"
            )
        if not self.beta and (given := {"use_bias_correction_kl", "token_kl_max"} & said):
            raise ValueError(f"{min(given)} has an effect only with a beta above 0; remove it")
        return self
