"""Tiles cover everything, weigh 1 together, lie on the network's grid, and come together exactly."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.restoration.tiles import Assembly, Tile, cut


@settings(deadline=None, max_examples=200)
@given(
    start=st.integers(0, 6),
    size=st.integers(1, 400),
    tile=st.integers(1, 130),
    share=st.floats(0, 0.95),
    multiple=st.sampled_from([1, 4, 16]),
)
def test_weights_add_up_to_one_everywhere_and_starts_are_on_the_grid(start, size, tile, share, multiple):
    tile = max(tile, multiple)
    overlap = int(tile * share)
    start *= multiple
    spans = cut(start, start + size, tile=tile, overlap=overlap, multiple=multiple)
    total = np.zeros(size)
    for span in spans:
        assert span.start % multiple == 0 and 0 < span.stop - span.start <= tile
        assert span.weight.min() >= 0
        total[span.start - start : span.stop - start] += span.weight
    np.testing.assert_allclose(total, 1, atol=1e-5)


def test_neighbours_overlap_as_asked_and_leave_their_borders_to_each_other():
    first, second, *_ = cut(0, 1000, tile=128, overlap=32, multiple=16)
    assert first.stop - second.start == 32
    assert second.weight[:12].max() < 1e-6 and first.weight[-12:].max() < 1e-6
    assert np.all(np.diff(second.weight[:32]) >= 0)


def test_what_fits_is_one_tile():
    (span,) = cut(16, 60, tile=64, overlap=32, multiple=16)
    assert (span.start, span.stop) == (16, 60) and (span.weight == 1).all()


@settings(deadline=None, max_examples=200)
@given(size=st.integers(1, 1200), tile=st.integers(1, 40), share=st.floats(0, 0.5))
def test_slabs_are_of_one_size_overlap_enough_and_repeat_no_more_than_needed(size, tile, share):
    overlap = int(tile * share)
    spans = cut(0, size, tile=tile, overlap=overlap)
    assert len({span.stop - span.start for span in spans}) == 1
    assert spans[0].start == 0 and spans[-1].stop == size
    assert all(a.stop - b.start >= overlap for a, b in itertools.pairwise(spans))
    if len(spans) > 1:  # one tile fewer would not do, and no tile is longer than evenly spread ones must be
        assert (len(spans) - 1) * (tile - overlap) + overlap < size
        length = spans[0].stop - spans[0].start
        assert (length - 1) * len(spans) < size + (len(spans) - 1) * overlap


def tiles_of(shape, size, share=0.3):
    axes = [cut(0, length, tile=tile, overlap=int(tile * share)) for length, tile in zip(shape, size, strict=True)]
    return [Tile(r, c, k) for k in axes[2] for r in axes[0] for c in axes[1]]


@pytest.mark.parametrize("size", [(7, 9, 3), (20, 30, 4), (5, 30, 1)])
def test_tiles_of_a_volume_come_together_to_the_volume_in_order(size):
    shape = (20, 30, 11)
    volume = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    tiles = tiles_of(shape, size)
    assembly, got, largest = Assembly(2, shape[:2]), [], 0
    for number, tile in enumerate(tiles):
        r, c = tile.in_plane
        assembly.add(tile, volume[:, r, c, tile.slices.start : tile.slices.stop])
        largest = max(largest, assembly._sum.shape[-1])
        following = tiles[number + 1].slices.start if number + 1 < len(tiles) else shape[2]
        got += assembly.finished(following)
    assert [first for first, _ in got] == sorted({first for first, _ in got})
    torch.testing.assert_close(torch.cat([values for _, values in got], dim=-1), volume, atol=1e-5, rtol=0)
    assert largest <= size[2], "never more than one slab is held"


def test_slices_that_no_tile_reached_are_zero():
    assembly = Assembly(1, (4, 4))
    ((first, values),) = assembly.finished(3)
    assert first == 0 and values.shape == (1, 4, 4, 3) and not values.any()
    assert list(assembly.finished(3)) == []
