"""What each alignment says of itself, held against what its paper and TRL's trainer take."""

from __future__ import annotations

import pytest

from llmft.registry.registry import Registry

PAIRS = {"preference_accuracy": True, "preference_margin": True}
REFERENCED = PAIRS | {"reward_accuracy": True, "reward_margin": True, "objective_loss": False}
ONLINE = {"reward": True, "kl": False}
DECLARED = {
    # method: rows it takes, what comes of it, whether its evaluation samples, and of its metrics
    # whether more is better
    "sft": (("completion", "chat", "text"), "policy", False, {}),
    "dpo": (("preference",), "policy", False, REFERENCED),
    "cpo": (("preference",), "policy", False, REFERENCED),
    "orpo": (("preference",), "policy", False, PAIRS),
    "kto": (("unpaired", "preference"), "policy", False, {
        "reward_accuracy": True, "reward_accuracy_desirable": True,
        "reward_accuracy_undesirable": True, "reward_margin": True, "objective_loss": False,
    }),
    "reward": (("preference",), "reward_model", False, {
        "accuracy": True, "margin": True, "calibration_error": False,
    }),
    "classification": (("classification",), "classifier", False, {
        "accuracy": True, "macro_f1": True, "mae": False,
    }),
    "ppo": (("prompt", "completion"), "policy", True, ONLINE | {"win_rate": True}),
    "grpo": (("prompt", "completion"), "policy", True, ONLINE),
    "rloo": (("prompt", "completion"), "policy", True, ONLINE),
    "gkd": (("completion", "chat", "prompt"), "policy", True, {"divergence": False}),
}  # fmt: skip


@pytest.fixture(scope="module")
def alignments():
    registry = Registry.discover()
    return {name: registry.method("alignment", name) for name in registry.names("alignment")}


def test_every_builtin_alignment_is_in_the_table(alignments):
    assert set(alignments) == set(DECLARED)


@pytest.mark.parametrize("method", DECLARED)
def test_an_alignment_declares_its_rows_and_metrics(alignments, method):
    found = alignments[method]
    rows, produces, generates, better = DECLARED[method]
    assert (found.rows, found.produces) == (rows, produces)
    assert found.evaluate_generates is generates
    assert dict(found.greater_is_better) == better
