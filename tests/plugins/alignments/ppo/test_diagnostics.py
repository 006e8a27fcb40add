"""What is said of a PPO run whose reward still rises: each thing once, by hand."""

from __future__ import annotations

import json

import pytest
from llmft_alignments.online.diagnostics import Diagnostics

MEANS = {"reward": 0.5, "kl": 1.0, "length": 10.0, "entropy": 2.0}


def said(steps: list[dict], *, target=None, start=0.0, scores=None) -> list[str]:
    """Return what is said of steps whose means are these, resumed after each of them."""
    told: list[str] = []
    watch = Diagnostics(told.append, target, start)
    for number, step in enumerate(steps):
        watch.see({"reward": number, **MEANS, "more": 1.0, **step}, spread=0.1)
        again = Diagnostics(told.append, target, start)
        again.restore(json.loads(json.dumps(watch.state())))
        watch = again
    if scores:
        watch.conclude(*scores)
    return told


def steps(name: str, *values: float) -> list[dict]:
    return [{name: value} for value in values]


def test_a_run_that_goes_well_has_nothing_said_of_it():
    assert said([{}] * 10) == []


@pytest.mark.parametrize(
    ("target", "start", "kl", "far"),
    [(None, 0.0, 30.1, True), (None, 0.0, 29.9, False), (None, 5.0, 34.9, False),
     (None, 5.0, 35.1, True), (4.0, 5.0, 12.1, True), (4.0, 0.0, 11.9, False)],
)  # fmt: skip
def test_a_policy_far_from_its_reference_is_told_once(target, start, kl, far):
    told = said(steps("kl", 0, 0, 0, kl, kl, kl, kl, kl), target=target, start=start)
    assert len(told) == far
    if far:
        assert told[0] == (
            f"the policy moves far from the reference: {kl:.1f} nats an answer at step 6;"
            " raise kl_coef, or lower learning_rate"
        )


def test_the_mean_of_the_last_three_steps_counts_and_the_first_three_are_waited_for():
    assert said(steps("kl", 90, 90, 90)) == []
    assert said(steps("kl", 0, 0, 0, 89)) == []  # 29.7 on average
    assert "30.3 nats an answer at step 4" in said(steps("kl", 0, 0, 0, 91))[0]


@pytest.mark.parametrize(
    ("lately", "drifts"), [(20.1, True), (19.9, False), (5.1, False), (4.9, True)]
)
def test_answers_that_become_twice_as_long_or_half_are_told(lately, drifts):
    told = said(steps("length", 9, 10, 11, lately, lately, lately))
    assert len(told) == drifts
    if drifts:
        assert f"10.0 tokens at first, {lately:.1f} at step 6" in told[0]


@pytest.mark.parametrize(("lately", "collapses"), [(0.19, True), (0.21, False)])
def test_an_entropy_of_a_tenth_is_told(lately, collapses):
    told = said(steps("entropy", 1, 2, 3, lately, lately, lately))
    assert len(told) == collapses
    if collapses:
        assert "2.000 nats a token at first, 0.1900 at step 6" in told[0]


RISES = steps("reward", 0.1, 0.2, 0.3, 0.5, 0.6, 0.7)


@pytest.mark.parametrize(
    ("before", "after", "gamed"),
    [
        ({"f1": 0.5}, {"f1": 0.4}, "f1 0.500 -> 0.400"),
        ({"f1": 0.5}, {"f1": 0.495}, ""),
        ({"f1": 0.5}, {"f1": 0.6}, ""),
        ({"loss": 2.0, "length": 9.0, "kl": 1.0}, {"loss": 1.0, "length": 3.0, "kl": 0.5}, ""),
        ({"f1": 0.5, "em": 0.4}, {"f1": 0.1, "em": 0.2}, "f1 0.500 -> 0.100, em 0.400 -> 0.200"),
        ({}, {"f1": 0.1}, ""),
    ],
)
def test_a_reward_that_rises_while_held_out_quality_falls_may_be_gamed(before, after, gamed):
    told = said(RISES, scores=(before, after))
    assert told == ([
        "the reward rose (0.200 -> 0.600) while held-out quality fell: "
        f"{gamed}; the policy may exploit the reward (reward hacking)"
    ] if gamed else [])  # fmt: skip


@pytest.mark.parametrize("rewards", [(0.3, 0.2, 0.1, 0.1, 0.1), (0.1, 0.2, 0.3)])
def test_a_reward_that_did_not_rise_or_a_run_too_short_is_not_called_gamed(rewards):
    assert said(steps("reward", *rewards), scores=({"f1": 0.5}, {"f1": 0.1})) == []
