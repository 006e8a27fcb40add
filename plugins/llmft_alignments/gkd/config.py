"""The settings of distillation: TRL's GKDConfig, by its own names."""

from __future__ import annotations

from pydantic import model_validator

from llmft.api import AlignmentConfig, Field, OtherModel


class GkdConfig(AlignmentConfig):
    """The teacher, whose answers are learnt on, and the divergence: TRL's GKDConfig's names."""

    teacher: OtherModel = Field(
        description="the model whose distributions are learnt, with the same vocabulary as the"
        " trained one; an adapter of a run is one after `llmft merge`"
    )
    lmbda: float = Field(
        0.5, ge=0, le=1, description="the share of rows whose answer the trained model writes"
        " itself, as it is in that step"
    )  # fmt: skip
    seq_kd: bool = Field(
        False, description="let the teacher write the other rows' answers, in place of their own"
    )
    beta: float = Field(
        0.5, ge=0, le=1, description="between the forward divergence, KL(teacher || model), at 0,"
        " and the reverse one, KL(model || teacher), at 1: the Jensen-Shannon divergence of that"
        " weight"
    )  # fmt: skip
    temperature: float = Field(
        0.9, gt=0, le=100, description="the temperature at which answers are sampled"
    )
    divergence_temperature: float = Field(
        1.0, gt=0, le=100, description="the temperature of both distributions in the divergence"
    )
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus sampling; 1: all tokens")
    top_k: int = Field(0, ge=0, le=1_000_000, description="top-k sampling; 0: all tokens")
    max_new_tokens: int = Field(
        128, ge=1, le=100_000, description="the most tokens of an answer that a model writes"
    )
    disable_dropout: bool = Field(
        True, description="turn every dropout off, the base's and the adapter's"
    )
    local_rollout_forward_batch_size: int = Field(
        64, ge=1, le=65_536, description="answers sampled at a time on one device"
    )

    @model_validator(mode="after")
    def _something_is_sampled(self) -> GkdConfig:
        fields = type(self).model_fields
        for name in ("temperature", "top_p", "top_k"):
            if not self.writes and getattr(self, name) != fields[name].default:
                raise ValueError(
                    f"{name} is of sampled answers, and with lmbda: 0 and seq_kd: false no model"
                    f" writes one; drop {name}"
                )
        return self

    @property
    def writes(self) -> bool:
        """Whether a model writes any answer."""
        return self.lmbda > 0 or self.seq_kd

    @property
    def writes_every_answer(self) -> bool:
        """Whether no answer is a row's own."""
        return self.lmbda == 1 or self.seq_kd
