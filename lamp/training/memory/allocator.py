"""How many bytes PyTorch's caching allocator reserves on a GPU for a sequence of allocations.

It takes memory from the driver in segments and keeps them, so freed memory of an unsuitable size
stays reserved. The rules are those of PyTorch's default CUDA allocator without expandable segments
(`c10/cuda/CUDACachingAllocator.cpp`): the smallest free block that fits, split if enough is left,
and merged with free neighbours when freed.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field

GRAIN = 512
"""Sizes are multiples of this many bytes."""

Event = tuple[int, int]
"""(identifier, bytes) of an allocation; bytes 0 frees it."""

_MB = 2**20
_LARGEST_SMALL = _MB  # larger requests come from another pool
_SMALL_SEGMENT = 2 * _MB
_LARGE_SEGMENT = 20 * _MB
_LARGEST_SHARED = 10 * _MB  # larger requests get a segment of their own size
_ROUNDING = 2 * _MB  # of those


@dataclass
class _Block:
    """A part of a segment, linked to its neighbours there."""

    size: int
    number: int
    small: bool
    before: _Block | None = None
    after: _Block | None = None
    free: bool = field(default=False, compare=False)

    @property
    def key(self) -> tuple[int, int]:
        return (self.size, self.number)


class CachingAllocator:
    """Replays allocations. ``reserved``: bytes taken from the driver, which are never returned."""

    def __init__(self) -> None:
        self.reserved = 0
        self._free: dict[bool, list[tuple[int, int, _Block]]] = {True: [], False: []}
        self._used: dict[int, _Block] = {}
        self._numbers = itertools.count()

    def replay(self, events: Iterable[Event]) -> int:
        """Replay `events` and return the bytes reserved so far."""
        for identifier, size in events:
            if size:
                self._used[identifier] = self._allocate(size)
            else:
                self._release(self._used.pop(identifier))
        return self.reserved

    def _allocate(self, size: int) -> _Block:
        size = -(-size // GRAIN) * GRAIN
        small = size <= _LARGEST_SMALL
        pool = self._free[small]
        place = bisect.bisect_left(pool, (size, -1))
        block = pool.pop(place)[2] if place < len(pool) else self._segment(size, small)
        left = block.size - size
        if left >= GRAIN if small else left > _LARGEST_SMALL:
            rest = _Block(left, next(self._numbers), small, block, block.after)
            if block.after is not None:
                block.after.before = rest
            block.after, block.size = rest, size
            self._offer(rest)
        block.free = False
        return block

    def _segment(self, size: int, small: bool) -> _Block:
        if small:
            whole = _SMALL_SEGMENT
        elif size < _LARGEST_SHARED:
            whole = _LARGE_SEGMENT
        else:
            whole = -(-size // _ROUNDING) * _ROUNDING
        self.reserved += whole
        return _Block(whole, next(self._numbers), small)

    def _release(self, block: _Block) -> None:
        if (before := block.before) is not None and before.free:
            self._take_back(before)
            block = self._merge(before, block)
        if (after := block.after) is not None and after.free:
            self._take_back(after)
            self._merge(block, after)
        self._offer(block)

    def _merge(self, left: _Block, right: _Block) -> _Block:
        left.size += right.size
        left.after = right.after
        if right.after is not None:
            right.after.before = left
        return left

    def _offer(self, block: _Block) -> None:
        block.free = True
        bisect.insort(self._free[block.small], (*block.key, block))

    def _take_back(self, block: _Block) -> None:
        pool = self._free[block.small]
        del pool[bisect.bisect_left(pool, block.key)]
