"""GRPO and RLOO pass the public kit, as any plugin must."""

from __future__ import annotations

from llmft_alignments.grpo import Grpo
from llmft_alignments.rloo import Rloo

from llmft.testing import AlignmentContract

RULE = {"method": "longer"}
BASE = {"rewards": [RULE], "num_generations": 2, "max_completion_length": 6}


class TestGrpo(AlignmentContract):
    method_class = Grpo
    configs = [
        BASE,
        BASE | {"loss_type": "grpo", "beta": 0.1, "num_iterations": 2},
        BASE | {"loss_type": "bnpo", "steps_per_generation": 2, "entropy_coef": 0.1},
        BASE | {"loss_type": "dr_grpo", "mask_truncated_completions": True},
    ]


class TestRloo(AlignmentContract):
    method_class = Rloo
    configs = [BASE, BASE | {"beta": 0.0, "normalize_advantages": True}]
