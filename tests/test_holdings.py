"""What fits is as much as there is room for, and no more."""

import math
from types import SimpleNamespace

import pytest

from keras_hessian_callback.holdings import Holdings, held_with_all


def that_fit(room, *, rank=16, products=20, block_size=8):
    return Holdings.that_fit(SimpleNamespace(room=room, block_size=block_size), rank, products)


@pytest.mark.parametrize(
    ("room", "rank", "residuals"),
    [
        (math.inf, 16, math.inf),
        (38, 16, math.inf),  # the basis, 20 products, 2 sums
        (37, 15, math.inf),
        (26, 4, math.inf),
        (25, 4, 7),  # the basis and its products, residuals, as many probes, 2 sums
        (12, 2, 3),
        (8, 1, 2),
        (7, 0, 2),
        (0, 0, 2),
    ],
)
def test_the_rank_is_lowered_by_what_is_missing(room, rank, residuals):
    found = that_fit(room)
    assert (found.rank, found.residuals) == (rank, residuals)


@pytest.mark.parametrize("block_size", [1, 4, 8, 32])
@pytest.mark.parametrize(("rank", "products"), [(1, 3), (16, 20), (4, 20), (96, 100)])
def test_what_fits_is_within_the_room(rank, products, block_size):
    """Counted at the peaks: the last block of products, and the next basis in its place."""
    before = 0
    for room in range(320):
        found = that_fit(room, rank=rank, products=products, block_size=block_size)
        k, w = found.rank, found.residuals
        if not k:
            assert before == 0
            continue
        width = block_size if w == math.inf else min(block_size, w)
        block = 2 * width  # and its products, at least
        for carried in (0, k):
            in_use = found.rank_beside(carried)
            for more in {k} if not carried else {0, in_use} if in_use > 0 else {0}:
                # A part of the carried basis lies in it; one with more directions beside it.
                used, beside = more or k, more
                if w == math.inf:
                    held = carried + beside + products + 2
                else:
                    held = carried + beside + used + w + 2
                    assert held + min(width, w) <= room
                assert held <= room
                assert held + k <= room + block
        before = k
    assert found.rank == rank
    assert held_with_all(rank, products, block_size) <= room


@pytest.mark.parametrize("room", [10, 20, 30, 37])
def test_no_more_would_fit(room):
    found = that_fit(room)
    larger = found.rank + 1
    assert held_with_all(larger, 20, 8) > room
    assert 2 * larger + 2 + found.residuals + min(8, found.residuals) > room


def test_directions_are_added_where_both_bases_fit():
    assert that_fit(math.inf).rank_beside(16) == 16
    assert that_fit(54).rank_beside(16) == 16
    assert that_fit(48).rank_beside(16) == 10
    assert that_fit(48).rank_beside(12) == 14
    assert that_fit(38).rank_beside(16) == 0
    assert that_fit(25).rank_beside(4) == 2  # with their products
    assert that_fit(38).rank_beside(30) < 0  # of an earlier time, when there was more room
