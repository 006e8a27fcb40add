"""Ranking in the terminal, as lines that are typed and lines that are printed."""

from __future__ import annotations

import pytest

from llmft.api.shown_text import escaped
from llmft.ranking.terminal import order_of, rank_in_terminal

from .conftest import lines


@pytest.fixture
def typed(session):
    def typed(*words):
        said: list[str] = []
        rank_in_terminal(session, [f"{word}\n" for word in words], said.append)
        return said

    return typed


def test_orders_that_are_typed_are_saved(typed, ratings, session, samples):
    said = typed("b > a = c > d", "BAD", "b>a")
    assert [line["item"] for line in lines(ratings)] == [s.id for s in samples[:3]]
    assert [line["all_bad"] for line in lines(ratings)] == [False, True, False]
    texts = session.show(0).texts
    groups = [[samples[0].completions[i] for i in g] for g in lines(ratings)[0]["ranking"]]
    assert [set(group) for group in groups] == [{texts[1]}, {texts[0], texts[2]}, {texts[3]}]
    assert "saved: b > a = c > d" in said
    assert session.next_unrated() is None


@pytest.mark.parametrize(
    ("order", "said"),
    [
        ("", "type an order"), ("a > b", "'c', 'd' are missing"), ("a>b>c", "'d' is missing"),
        ("a>b>c>d>e", "'e' is none of the answers"), ("a>b>a>c", "'a' is there twice"),
        ("a>>b", "on both sides"), ("abcd", "'abcd' is none"), ("a>b>c>", "on both sides"),
        ("=", "on both sides"), (".", "'.' is none"), ("\x1b[2J", "'<U+001B>[2j' is none"),
    ],
)  # fmt: skip
def test_a_mistake_is_explained_and_nothing_is_saved(typed, session, ratings, order, said):
    assert said in str(order_of(order.lower(), session.show(0)))
    assert any(said in line for line in typed(order))
    assert lines(ratings) == []


def test_back_shows_what_was_said_and_enter_leaves_it(typed, ratings):
    said = typed("a>b>c>d", "back", "", "quit")
    assert any("you said: a > b > c > d" in line for line in said)
    assert len(lines(ratings)) == 1
    assert "prompt 2 of 3" in said[-1]


def test_back_and_another_order_decides_anew(typed, ratings):
    typed("a>b>c>d", "back", "d>c>b>a", "quit")
    first, second = lines(ratings)
    assert first["item"] == second["item"]
    assert first["ranking"] == list(reversed(second["ranking"]))


def test_before_the_first_there_is_nothing(typed):
    assert "this is the first prompt" in typed("back", "back")


def test_skipped_prompts_stay_open(typed, session, ratings, samples):
    typed("skip", "bad", "skip")
    assert [line["item"] for line in lines(ratings)] == [samples[1].id]
    assert session.next_unrated() == 0


@pytest.mark.parametrize("words", [(), ("quit",), ("help",), ("a>b>c>d",)])
def test_the_end_of_input_ends_it(typed, ratings, words):
    typed(*words)
    assert len(lines(ratings)) == ("a>b>c>d" in words)


def test_what_a_model_wrote_cannot_steer_the_terminal():
    assert escaped("a\x1b[31mred\x07\x9b\u202eb\r\n\tc") == (
        "a<U+001B>[31mred<U+0007><U+009B><U+202E>b<U+000D>\n\tc"
    )
    assert escaped("می‌خواهم 👩‍🚀") == "می‌خواهم 👩‍🚀"


def test_chat_turns_and_repeats_are_shown(typed):
    page = "\n".join(typed("skip"))
    assert "system: Be brief.\nuser: Winter?" in page
    assert "(given 2 times)\n   snow" in page
