"""The garbage collector rests while libraries are loaded, and only then."""

from __future__ import annotations

import gc

import pytest

from llmft.system.startup import without_collecting


@pytest.fixture(autouse=True)
def collecting():
    gc.enable()
    yield
    gc.enable()


def test_nothing_is_collected_inside_and_again_afterwards():
    with without_collecting():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_it_is_collected_again_after_an_error():
    with pytest.raises(ValueError, match="wrong"), without_collecting():
        raise ValueError("wrong")
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off():
    gc.disable()
    with without_collecting(), without_collecting():
        pass
    assert not gc.isenabled()
