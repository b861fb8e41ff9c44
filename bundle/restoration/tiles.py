"""How a volume is cut into tiles and put together again, a slab of slices after the other, without seams.

Neighbours overlap. The outer part of an overlap, where a network sees too little around it, is left to the other tile;
in the middle eighth one fades into the other. Weights are products of one-dimensional ones that add up to 1: nothing
has to be normalised at the end, and slices can leave as soon as no tile can change them any more.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

# Share of an overlap at a tile's border that the neighbour provides alone. What a tile is wrong by falls by about
# half with each slice from its border (docs/inference.md): the best of both is nearly a cut in the middle.
_LEFT_TO_THE_OTHER = 0.4375


@dataclass(frozen=True)
class Span:
    """One tile along one axis: voxels start to stop, and the weight of each (they add up to 1 over the tiles)."""

    start: int
    stop: int
    weight: np.ndarray


@dataclass(frozen=True)
class Tile:
    """A box of voxels with separable weights.

    Attributes:
        rows: along H.
        columns: along W.
        slices: along D.
    """

    rows: Span
    columns: Span
    slices: Span

    @property
    def shape(self) -> tuple[int, int, int]:
        """H, W, D."""
        height, width, depth = (span.stop - span.start for span in (self.rows, self.columns, self.slices))
        return height, width, depth

    @property
    def origin(self) -> tuple[int, int, int]:
        """Row, column and slice of its first voxel."""
        return self.rows.start, self.columns.start, self.slices.start

    @property
    def in_plane(self) -> tuple[slice, slice]:
        """Its rows and columns, as an index."""
        return slice(self.rows.start, self.rows.stop), slice(self.columns.start, self.columns.stop)

    def weight(self) -> torch.Tensor:
        """Its weights (H, W, D), float32, the values of a slice together in memory."""
        rows, columns, slices = (torch.from_numpy(s.weight) for s in (self.rows, self.columns, self.slices))
        return (slices[:, None, None] * (rows[:, None] * columns)).movedim(0, -1)


def plain(start: int, stop: int) -> Span:
    """Return voxels that no other tile has a share in."""
    return Span(start, stop, np.ones(stop - start, np.float32))


def cut(start: int, stop: int, *, tile: int, overlap: int, multiple: int = 1) -> list[Span]:
    """Cut voxels start to stop along an axis into overlapping tiles, as few as will do.

    Args:
        start: first voxel, a multiple of `multiple`.
        stop: one past the last voxel.
        tile: most voxels of a tile.
        overlap: least number of voxels that neighbours repeat, below `tile`.
        multiple: tiles start at multiples of it: a network with strides then sees the same grid in all. Without such
            a grid (1) all tiles are of one size, the least that covers everything; with one, the last may be shorter.
    """
    assert start % multiple == 0 and stop > start and 0 <= overlap < tile
    starts, length = [start], stop - start
    if length > tile and multiple == 1:
        count = -(-(length - overlap) // (tile - overlap))
        tile = -(-(length + (count - 1) * overlap) // count)
        starts = [start + (length - tile) * number // (count - 1) for number in range(count)]
    elif length > tile:
        step = max((tile - overlap) // multiple * multiple, multiple)
        last = start - (start + tile - stop) // multiple * multiple  # rounded up: the last one ends at `stop`
        starts = [*range(start, last, step), last]
    ends = [min(first + tile, stop) for first in starts]
    weights = np.zeros((len(starts), stop - start))
    for number, (first, end) in enumerate(zip(starts, ends, strict=True)):
        own = np.ones(end - first)
        if number:
            own = np.minimum(own, _rise(first, first, ends[number - 1], end - first))
        if number + 1 < len(starts):
            own = np.minimum(own, 1 - _rise(first, starts[number + 1], end, end - first))
        weights[number, first - start : end - start] = np.maximum(own, 1e-9)
    weights /= weights.sum(axis=0)
    return [
        Span(first, end, weights[number, first - start : end - start].astype(np.float32))
        for number, (first, end) in enumerate(zip(starts, ends, strict=True))
    ]


def _rise(origin: int, low: int, high: int, length: int) -> np.ndarray:
    """0 to 1 over the middle of the overlap low to high, two voxels at least, for `length` voxels from `origin`."""
    margin = max(min(_LEFT_TO_THE_OTHER * (high - low), (high - low) / 2 - 1), 0)
    place = origin + np.arange(length) + 0.5
    width = max(high - low - 2 * margin, 1e-6)
    return np.clip((place - low - margin) / width, 0.0, 1.0)


class Assembly:
    """Adds tiles up and hands out finished slices in order.

    Args:
        channels: of what is added up.
        plane: H, W of the volume.
    """

    def __init__(self, channels: int, plane: Sequence[int]) -> None:
        self._shape = (channels, *plane)
        self._first = 0
        self._sum = self._zeros(0)

    def add(self, tile: Tile, values: torch.Tensor) -> None:
        """Add a tile's values (channels, h, w, d), weighted."""
        self._reach(tile.slices.stop)
        depth = slice(tile.slices.start - self._first, tile.slices.stop - self._first)
        self._sum[(slice(None), *tile.in_plane, depth)] += values * tile.weight()

    def finished(self, before: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield (number of the first slice, (channels, H, W, d)) of what no later tile reaches.

        Args:
            before: the slice where the next tile starts; the depth of the volume after the last one.
        """
        count = before - self._first
        if count <= 0:
            return
        self._reach(before)  # slabs of air alone add nothing
        first, values = self._first, self._sum[..., :count]
        self._sum, self._first = self._sum[..., count:].clone(), before
        yield first, values

    def _reach(self, stop: int) -> None:
        missing = stop - self._first - self._sum.shape[-1]
        if missing > 0:
            self._sum = torch.cat([self._sum, self._zeros(missing)], dim=-1)

    def _zeros(self, count: int) -> torch.Tensor:
        """As the networks' results lie in memory, the values of a slice together."""
        channels, *plane = self._shape
        return torch.zeros(channels, count, *plane).movedim(1, -1)
