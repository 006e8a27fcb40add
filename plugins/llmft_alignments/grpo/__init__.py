"""Group-relative policy optimisation: answers to one prompt are compared with each other."""

from __future__ import annotations

from typing import Any

from llmft.api import hookimpl
from llmft_alignments.grpo.config import GrpoConfig
from llmft_alignments.grpo.method import GroupMethod


class Grpo(GroupMethod[GrpoConfig]):
    """Group-relative policy optimisation (Shao et al. 2024) of sampled answers.

    An answer's advantage is its reward less the mean of its group: the answers to the same prompt.
    There is no value model, and with a beta of 0 no reference either.
    """

    method = "grpo"
    Config = GrpoConfig
    knobs = ("beta", "beta or entropy_coef")

    def rule(self) -> Any:
        from llmft_alignments.grpo.objective import GrpoRule

        return GrpoRule(self.config)


@hookimpl
def llmft_alignments() -> list[type[Grpo]]:
    return [Grpo]
