"""Pieces of a text add up to it, and hold back what may become a stop text."""

from __future__ import annotations

from llmft.inference.growing_text import GrowingText


class Letters:
    """A tokenizer of bytes, as byte-level ones are."""

    def decode(self, ids, skip_special_tokens):
        return bytes(i for i in ids if i != 0).decode("utf-8", "replace")


def pieces(text: str, *stop: str) -> tuple[list[str], GrowingText]:
    growing = GrowingText(Letters(), stop)
    found = []
    for token in text.encode():
        found.append(growing.add(token))
        if growing.stopped:
            break
    return [*found, growing.end()], growing


def test_half_a_letter_waits_for_its_rest():
    found, growing = pieces("aé!")
    assert found == ["a", "", "é", "!", ""]
    assert growing.text == "aé!"


def test_what_may_begin_a_stop_text_is_held_back():
    found, growing = pieces("xabyabc", "abc")
    assert found == ["x", "", "", "aby", "", "", "", ""]
    assert growing.stopped
    assert growing.text == "xaby"


def test_what_was_held_back_is_said_at_the_end():
    found, growing = pieces("xab", "abc")
    assert found == ["x", "", "", "ab"]
    assert not growing.stopped


def test_the_first_of_several_stop_texts_counts():
    _, growing = pieces("one two three", "three", "two")
    assert growing.text == "one "
