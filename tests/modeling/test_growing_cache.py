"""A cache with room ahead holds what transformers' own holds, and has no more room than it may."""

from __future__ import annotations

import pytest
import torch
from transformers.cache_utils import DynamicCache, DynamicSlidingWindowLayer

from llmft.modeling.growing_cache import GrowingLayer, give_room


def begun(tokens: int) -> list[DynamicCache]:
    made = []
    for _ in range(2):
        torch.manual_seed(0)
        cache = DynamicCache()
        for layer in range(2):
            cache.update(*states(tokens), layer)
        made.append(cache)
    return made


def states(tokens: int, rows: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(rows, 2, tokens, 8), torch.randn(rows, 2, tokens, 6)


@pytest.mark.parametrize("more", [0, 3, 500])
def test_it_holds_what_transformers_own_holds(more):
    plain, own = begun(70)
    give_room(own, more)
    assert all(type(layer) is GrowingLayer for layer in own.layers)
    rows = 3
    for step in range(150):
        if step in (40, 41, 120):  # rows end
            rows = max(1, rows - 1)
            keep = torch.arange(rows) + 1 if step == 40 else torch.arange(rows)
            plain.batch_select_indices(keep)
            own.batch_select_indices(keep)
        new = states(1 + step % 2, rows)
        for number in range(2):
            for held, wanted in zip(own.update(*new, number), plain.update(*new, number),
                                    strict=True):  # fmt: skip
                assert torch.equal(held, wanted)
        assert own.get_seq_length() == plain.get_seq_length()


def test_a_token_is_written_and_the_others_stay_where_they_are():
    _, cache = begun(200)
    give_room(cache, 90)
    places = set()
    for _ in range(90):
        keys, values = cache.update(*states(1), 0)
        places.add((keys.data_ptr(), values.data_ptr()))
        assert keys.stride(1) // 8 == 290  # room for those that may come, and not for 300
    assert len(places) == 1
    cache.update(*states(1), 0)
    assert cache.layers[0].keys.shape[2] == 291


def test_layers_and_caches_of_other_kinds_stay_as_they_are():
    _, cache = begun(9)
    sliding = cache.layers[1] = DynamicSlidingWindowLayer(4)
    give_room(cache, 5)
    assert cache.layers[1] is sliding

    class OtherCache(DynamicCache):
        pass

    other = OtherCache()
    other.update(*states(4), 0)
    give_room(other, 5)
    assert type(other.layers[0]) is not GrowingLayer
