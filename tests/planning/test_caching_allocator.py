"""Blocks and segments of torch's allocator, by hand."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
import torch

from llmft.planning.caching_allocator import CachingAllocator
from llmft.planning.memory_tracker import ACTIVATIONS, FRAGMENTS, MemoryTracker

KIB, MIB = 2**10, 2**20


@pytest.mark.parametrize(
    ("size", "segment"),
    [(1, 2 * MIB), (MIB, 2 * MIB), (MIB + 1, 20 * MIB), (10 * MIB - 512, 20 * MIB),
     (10 * MIB, 10 * MIB), (11 * MIB, 12 * MIB), (25 * MIB + 1, 26 * MIB), (0, 0)],
)  # fmt: skip
def test_a_block_is_of_a_segment_of_its_size(size, segment):
    allocator = CachingAllocator()
    allocator.give_back(block := allocator.take(size))
    assert (allocator.reserved, allocator.held) == (segment, 0)
    assert (block is None) == (not size)
    allocator.take(size)
    assert (allocator.reserved, allocator.held) == (segment, segment), "it is used again"


def test_small_blocks_share_a_segment_in_steps_of_512_bytes():
    allocator = CachingAllocator()
    first, second, third = (allocator.take(size) for size in (1, 513, MIB))
    assert [(block.start, block.size) for block in (first, second, third)] == [
        (0, 512), (512, 1024), (1536, MIB)
    ]  # fmt: skip
    assert allocator.take(MIB).segment is not first.segment, "1536 bytes too few are left"
    assert allocator.reserved == 4 * MIB


def test_a_large_block_is_cut_only_where_more_than_a_mebibyte_is_left():
    allocator = CachingAllocator()
    allocator.give_back(allocator.take(12 * MIB))
    whole = allocator.take(11 * MIB)
    assert whole.size == 12 * MIB
    allocator.give_back(whole)
    cut = allocator.take(11 * MIB - 512)
    assert (cut.size, cut.after.size, allocator.reserved) == (11 * MIB - 512, MIB + 512, 12 * MIB)


def test_the_smallest_free_block_that_is_large_enough_is_taken():
    allocator = CachingAllocator()
    taken = [allocator.take(size * MIB) for size in (40, 30, 20)]
    for block in taken:
        allocator.give_back(block)
    assert allocator.take(25 * MIB).segment is taken[1].segment
    assert allocator.reserved == 90 * MIB


def test_free_neighbours_are_joined_and_what_is_between_keeps_a_segment():
    allocator = CachingAllocator()
    allocator.give_back(allocator.take(60 * MIB))
    first, second, third = (allocator.take(20 * MIB) for _ in range(3))
    allocator.give_back(first)
    allocator.give_back(third)
    allocator.take(30 * MIB)  # 40 are free, and not in one piece
    assert allocator.reserved == allocator.held == 90 * MIB
    allocator.give_back(second)
    assert allocator.held == 30 * MIB, "nothing of the first segment is in use"
    assert allocator.take(60 * MIB).size == 60 * MIB
    assert allocator.reserved == 90 * MIB


def test_blocks_never_overlap_and_all_is_given_back():
    chance, allocator, live = random.Random(0), CachingAllocator(), []
    for _ in range(3000):
        if live and chance.random() < 0.5:
            allocator.give_back(live.pop(chance.randrange(len(live))))
        else:
            live.append(allocator.take(chance.choice((700, 90 * KIB, 3 * MIB, 17 * MIB))))
    spans = sorted((b.segment.number, b.start, b.start + b.size) for b in live)
    assert all(a[0] < b[0] or a[2] <= b[1] for a, b in pairwise(spans))
    segments = {block.segment.number: block.segment.size for block in live}
    assert allocator.held == sum(segments.values()) <= allocator.reserved
    for block in live:
        allocator.give_back(block)
    assert allocator.held == 0
    assert sum(size for size, *_ in allocator._free[True] + allocator._free[False]) == (
        allocator.reserved
    )


def test_a_tracker_s_peak_has_what_the_allocator_holds_around_tensors():
    memory = MemoryTracker(CachingAllocator())
    memory.begin("one")
    with memory:
        x = torch.zeros(3 * MIB // 4)
    memory.pass_by(ACTIVATIONS, 4 * MIB)
    memory.close()
    (peak,) = memory.peaks
    assert peak.by_kind == {ACTIVATIONS: 7 * MIB, FRAGMENTS: 13 * MIB}
    assert (peak.tensors, peak.total, peak.reserved) == (7 * MIB, 20 * MIB, 20 * MIB)
    del x
    assert memory.allocator.held == 0
