"""Results are compared as mathematics, as TRL's own reward and ms-swift's rules have it."""

from __future__ import annotations

import signal
import time

import math_verify as math_verify_package
import pytest
from llmft_rewards import limits, math_verify
from llmft_rewards.math_verify import MathVerify
from llmft_rewards.pattern import Pattern
from pydantic import ValidationError

from llmft.system.time_limit import TimeUp, time_limit

RIGHT = [r"the answer is $\frac{1}{2}$", "72", r"\boxed{x=4}", "no result", r"$\sqrt{8}$", "3,4"]
GIVEN = [
    r"so \boxed{0.5}", r"$72$ and more", "72", r"\boxed{72}", r"\boxed{2\sqrt{2}}", r"$x = 4$",
    r"\boxed{4,3}", "", r"\boxed{\frac12}", r"first $1$, then $\boxed{72}$",
]  # fmt: skip


def made(**settings) -> MathVerify:
    return MathVerify(MathVerify.Config(method="math_verify", **settings))


def test_the_scores_are_those_of_trls_reward():
    from trl.rewards import accuracy_reward

    seen = set()
    for right in RIGHT:
        texts = [[{"role": "assistant", "content": text}] for text in GIVEN]
        theirs = accuracy_reward(texts, [right] * len(GIVEN))
        ours = [made().score("p", text, (right,)) for text in GIVEN]
        assert ours == [one or 0.0 for one in theirs], right
        seen |= set(theirs)
    assert seen == {0.0, 1.0, None}  # None: the right answer cannot be read


@pytest.mark.parametrize(("text", "right", "score"), [
    ("I say <answer>7</answer>", "7", 1.0),  # a tag is read as freely as a right answer
    ("I say 7", "7", 0.0),  # and other text for its LaTeX only
    (r"\boxed{8} <answer>\n7</answer><answer>8</answer>", "<answer>7</answer>, not 8", 1.0),
    ("<answer></answer>$7$", "7", 0.0),
    ("</answer><answer>8 \\boxed{7}", "7", 1.0),  # a tag that is not closed is none
    (r"\boxed{7}", "nothing", 0.0),
])  # fmt: skip
def test_only_what_the_first_tag_holds_is_read(text, right, score):
    asked = made(answer_tag="answer", boxed="none", extraction_mode="first_match")
    assert asked.score("p", text.replace(r"\n", "\n"), (right,)) == score


def test_the_best_of_several_right_answers_counts_and_none_is_none():
    assert made().score("p", r"\boxed{7}", ("8", "7", "9")) == 1.0
    assert made().score("p", r"\boxed{7}", ()) == 0.0


def test_a_result_that_takes_too_long_is_none(monkeypatch):
    monkeypatch.setattr(limits, "LONGEST", 0.05)
    assert math_verify._limited(lambda: time.sleep(5)) is None


def test_an_answer_is_read_once_for_all_right_answers(monkeypatch):
    read, theirs = [], math_verify_package.parse
    monkeypatch.setattr(
        math_verify_package, "parse", lambda text, **how: read.append(text) or theirs(text, **how)
    )
    assert made().score("p", r"\boxed{7}", ("8", "9", "7", "6")) == 1.0
    assert read == [r"\boxed{7}", "8", "9", "7"]


def test_an_answer_that_keeps_a_pattern_busy_gets_none(monkeypatch):
    monkeypatch.setattr(limits, "LONGEST", 0.2)
    slow = Pattern(Pattern.Config(method="pattern", pattern="(a+)+b"))
    began = time.monotonic()
    assert slow.score("p", "a" * 34, ()) == 0.0
    assert time.monotonic() - began < 2.0
    assert slow.score("p", "aab", ()) == 1.0


def many() -> None:
    for _ in range(1000):
        made().score("p", r"\boxed{\frac{1}{3}}", (r"$\frac13$",))


def test_the_limit_of_all_answers_counts_the_time_in_the_library():
    began = time.monotonic()
    with pytest.raises(TimeUp), time_limit(0.2):
        many()
    assert time.monotonic() - began < 1.0
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@pytest.mark.parametrize(("text", "score"), [
    ("<think>a\nb</think>\n<answer>c</answer>", 1.0),
    ("<think>a</think><answer>c</answer>\n", 0.0),  # something follows
    (" <think>a</think><answer>c</answer>", 0.0),  # something comes before
    ("<think>a</think> so <answer>c</answer>", 0.0),
])  # fmt: skip
def test_a_pattern_is_looked_for_at_the_answers_start(text, score):
    form = Pattern.Config(
        method="pattern", pattern=r"<think>.*?</think>\s*<answer>.*?</answer>\Z", weight=2.0
    )
    assert Pattern(form).score("p", text, ()) == score


@pytest.mark.parametrize("pattern", ["(", "a{99999999999999999999}", "(" * 600 + "a" + ")" * 600])
def test_a_pattern_that_cannot_be_read_is_refused(pattern):
    with pytest.raises(ValidationError, match="no regular expression of Python"):
        Pattern.Config(method="pattern", pattern=pattern)
