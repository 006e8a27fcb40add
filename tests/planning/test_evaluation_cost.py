"""The cache of keys and values that answers grow in, counted by hand."""

from __future__ import annotations

import pytest

from llmft.modeling.tiny_models import tiny_llama
from llmft.planning.evaluation_cost import grow_cache
from llmft.planning.memory_tracker import CACHE, MemoryTracker


def cache_of(lengths: list[int], new: int, virtual: int = 0) -> tuple[int, int]:
    """Return the bytes of the cache at the peak, and those of one position of a layer's keys."""
    model = tiny_llama()
    model.n_virtual = virtual
    config, tracker = model.config, MemoryTracker()
    with tracker:
        tracker.begin("generate")
        grow_cache(model, tracker, lengths, new)
        tracker.close()
    heads, width = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
    return tracker.peaks[0].by_kind[CACHE], len(lengths) * heads * width * 4


@pytest.mark.parametrize("new", [100, 150])
def test_a_cache_grows_to_the_end_of_the_answers(new):
    found, position = cache_of([10, 4], new)
    # Keys and values of two layers, and one of them twice while it is copied.
    assert found == 5 * (10 + new) * position


def test_prompts_are_cut_to_leave_room_for_answers_and_learnt_positions():
    longest = tiny_llama().config.max_position_embeddings
    found, position = cache_of([longest + 50], longest - 56, virtual=8)
    assert found == 5 * longest * position
