"""What torch's allocator would hold of a GPU for the tensors of a plan: it cuts blocks of segments.

By the rules of c10/cuda/CUDACachingAllocator.cpp (torch 2.13) in its default settings: sizes are
rounded up to 512 bytes; what is at most 1 MiB shares segments of 2 MiB, what is under 10 MiB those
of 20 MiB, and what is larger has one of its own, rounded up to 2 MiB; the smallest free block that
is large enough is taken, and cut where enough is left; neighbours that are free are joined.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

SMALLEST, SMALL, SMALL_SEGMENT = 512, 2**20, 2 * 2**20
FROM_LARGE, LARGE_SEGMENT, ROUNDED = 10 * 2**20, 20 * 2**20, 2 * 2**20


@dataclass(slots=True)
class _Segment:
    """Memory that is asked of the driver at once. used: bytes of its blocks that are taken."""

    number: int
    size: int
    small: bool
    used: int = 0


@dataclass(slots=True)
class Block:
    """A part of a segment, from `start` on."""

    segment: _Segment
    start: int
    size: int
    free: bool = False
    before: Block | None = None
    after: Block | None = None


_Key = tuple[int, int, int]


class CachingAllocator:
    """Takes and frees blocks without memory.

    reserved: bytes of all segments. held: of those that no one could give back, as something in
    them is in use; where the driver has no more, torch gives back the others and asks again.
    """

    def __init__(self) -> None:
        self.reserved = self.held = 0
        self._segments = 0
        self._free: dict[bool, list[_Key]] = {True: [], False: []}
        self._blocks: dict[_Key, Block] = {}

    def take(self, size: int) -> Block | None:
        """Return a block for a tensor of so many bytes; none for one of no bytes."""
        if not size:
            return None
        size = -(-size // SMALLEST) * SMALLEST
        small = size <= SMALL
        block = self._fitting(size, small) or self._of_a_new_segment(size, small)
        segment, left = block.segment, block.size - size
        if left >= SMALLEST if small else left > SMALL:
            rest = Block(segment, block.start + size, left, before=block, after=block.after)
            if block.after is not None:
                block.after.before = rest
            block.size, block.after = size, rest
            self._put(rest)
        if not segment.used:
            self.held += segment.size
        segment.used += block.size
        return block

    def give_back(self, block: Block | None) -> None:
        """Free a block, which is joined with its neighbours where they are free."""
        if block is None:
            return
        segment = block.segment
        segment.used -= block.size
        if not segment.used:
            self.held -= segment.size
        if (first := block.before) is not None and first.free:
            self._pull(first)
            block = self._joined(first, block)
        if (last := block.after) is not None and last.free:
            self._pull(last)
            block = self._joined(block, last)
        self._put(block)

    def _fitting(self, size: int, small: bool) -> Block | None:
        """Return the smallest free block that is large enough, of equals the first."""
        free = self._free[small]
        place = bisect_left(free, (size, 0, 0))
        if place == len(free):
            return None
        block = self._blocks[free[place]]
        self._pull(block)
        return block

    def _of_a_new_segment(self, size: int, small: bool) -> Block:
        whole = SMALL_SEGMENT if small else LARGE_SEGMENT
        if size >= FROM_LARGE:
            whole = -(-size // ROUNDED) * ROUNDED
        self._segments += 1
        self.reserved += whole
        return Block(_Segment(self._segments, whole, small), 0, whole)

    def _put(self, block: Block) -> None:
        block.free = True
        self._blocks[_key(block)] = block
        insort(self._free[block.segment.small], _key(block))

    def _pull(self, block: Block) -> None:
        block.free = False
        free = self._free[block.segment.small]
        del free[bisect_left(free, _key(block))], self._blocks[_key(block)]

    @staticmethod
    def _joined(first: Block, second: Block) -> Block:
        first.size += second.size
        first.after = second.after
        if second.after is not None:
            second.after.before = first
        return first


def _key(block: Block) -> _Key:
    return block.size, block.segment.number, block.start
