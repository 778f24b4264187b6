"""The replay of PyTorch's caching allocator, against its rules by hand."""

from __future__ import annotations

import pytest

from lamp.training.memory.allocator import CachingAllocator

MB = 2**20


@pytest.mark.parametrize(
    ("sizes", "reserved"),
    [
        ([1], 2 * MB),  # the smallest segment
        ([MB, MB], 2 * MB),  # both fit in one
        ([MB, MB, 1], 4 * MB),
        ([MB + 1], 20 * MB),  # the pool of large allocations
        ([9 * MB, 9 * MB], 20 * MB),
        ([9 * MB, 9 * MB, 9 * MB], 40 * MB),
        ([11 * MB], 12 * MB),  # a segment of its own, in steps of 2 MB
    ],
)
def test_segments(sizes: list[int], reserved: int) -> None:
    assert CachingAllocator().replay(enumerate(sizes)) == reserved


def test_freed_memory_is_used_again_but_stays_reserved() -> None:
    allocator = CachingAllocator()
    assert allocator.replay([(1, 40 * MB), (1, 0)]) == 40 * MB
    assert allocator.replay([(2, 40 * MB)]) == 40 * MB


def test_a_large_free_block_is_split_and_merged_again() -> None:
    allocator = CachingAllocator()
    allocator.replay([(1, 60 * MB), (1, 0), (2, 20 * MB), (3, 20 * MB), (4, 20 * MB)])
    assert allocator.reserved == 60 * MB
    # The middle one is freed last: it joins its neighbours on both sides.
    allocator.replay([(2, 0), (4, 0), (3, 0), (5, 60 * MB)])
    assert allocator.reserved == 60 * MB


def test_a_hole_between_used_blocks_is_too_small_for_more() -> None:
    allocator = CachingAllocator()
    allocator.replay([(1, 60 * MB), (1, 0), (2, 20 * MB), (3, 20 * MB), (4, 20 * MB)])
    assert allocator.replay([(3, 0), (5, 22 * MB)]) == 82 * MB


def test_the_smallest_block_that_fits_is_taken() -> None:
    allocator = CachingAllocator()
    allocator.replay([(1, 60 * MB), (2, 30 * MB), (1, 0), (2, 0)])
    assert allocator.replay([(3, 28 * MB), (4, 60 * MB)]) == 90 * MB


def test_a_rest_of_a_megabyte_stays_with_its_block() -> None:
    allocator = CachingAllocator()
    allocator.replay([(1, 30 * MB), (1, 0), (2, 29 * MB)])
    assert allocator.replay([(3, MB + 512)]) == 50 * MB
