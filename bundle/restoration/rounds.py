"""Slices that flow through a network, in as many rounds through the volume as there are images, legs and tiles.

A draw, a mirror image or more than a few steps at once would each hold slices of its own. In rounds one after the other
memory is that of one; what a round leaves for the next lies in pages, which can be on disk.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from bundle.networks.precision import keep_memory_for
from bundle.networks.slice_stream import SliceStream
from bundle.pages import Pages, let_go
from bundle.restoration.draws import Leg, deviation, take_in
from bundle.restoration.passes import Finished, Passage, told
from bundle.restoration.region import joint_box
from bundle.restoration.tiles import Tile, plain

# Of each result of a leg: number of the first slice, and values (channels, h, w, d).
Found = list[tuple[int, torch.Tensor]]


class Rounds:
    """A passage whose slices flow.

    Args:
        passage: the volume and what is applied to it.
        at_once: slices that a pass is given.
        pages: where what lies between two rounds is kept.
    """

    def __init__(self, passage: Passage, *, at_once: int, pages: Pages) -> None:
        self.passage, self.at_once, self.pages = passage, at_once, pages
        self.depth = passage.depth

    def flowing(self) -> Iterator[Finished]:
        """Yield finished slices in order; they come out as those of the whole volume.

        The body's box is that of all slices; planes that are too large are cut into tiles, which flow one after the
        other. Where one round does it, slices leave as soon as they are finished, otherwise in the end.
        """
        boxes = (self.passage.box(self.passage.slab(*limits)) for limits in self._passes())
        tiles = self.passage.tiles(joint_box(boxes), plain(0, self.depth))
        if len(tiles) == 1 and sum(map(len, self.passage.draws)) == 1:
            return self._at_once(tiles[0])
        return self._in_rounds(tiles)

    def _at_once(self, tile: Tile) -> Iterator[Finished]:
        assembly = self.passage.assembly()
        for ((first, change),) in self._round(tile, self.passage.draws[0][0], ()):
            stop = first + change.shape[-1]
            assembly.add(_part(tile, first, stop), change)
            yield from told(assembly, stop)

    def _in_rounds(self, tiles: Sequence[Tile]) -> Iterator[Finished]:
        rounds, through, worked = len(tiles) * sum(map(len, self.passage.draws)), 0, 0
        channels, plane = 1 + self.passage.deviation, self.passage.volume.shape[:2]
        total = self._room((channels, *plane, self.depth))
        for tile in tiles:
            moments = [self._room((1, *tile.shape)) for _ in range(channels)]
            for count in self._images(tile, moments):
                through += count
                yield Finished(0, torch.zeros(channels, *plane, 0), through // rounds - worked)
                worked = through // rounds
            for start, stop in self._passes():
                values = self._finished([array[..., start:stop] for array in moments])
                part = total[..., start:stop]
                part[:, *tile.in_plane] += (_part(tile, start, stop).weight() * values).numpy()
                let_go(part)
        for start, stop in self._passes():
            yield Finished(start, _copied(total[..., start:stop]), 0 if tiles else stop - start)

    def _images(self, tile: Tile, moments: Sequence[np.ndarray]) -> Iterator[int]:
        """Fill in mean and sum of squares (1, h, w, D) of a tile's images; yield how many slices a pass brought out."""
        for count, legs in enumerate(self.passage.draws, 1):
            state: list[np.ndarray] = []
            for leg in legs[:-1]:
                kept: list[np.ndarray] = []
                for found in self._round(tile, leg, state):
                    kept = kept or [self._room((*values.shape[:-1], self.depth)) for _, values in found]
                    for array, (first, values) in zip(kept, found, strict=True):
                        part = array[..., first : first + values.shape[-1]]
                        part[...] = values.numpy()
                        let_go(part)
                    yield found[0][1].shape[-1]
                state = kept
            for ((first, change),) in self._round(tile, legs[-1], state):
                parts = [array[..., first : first + change.shape[-1]] for array in moments]
                take_in(change, *map(torch.from_numpy, parts), count=count)
                for part in parts:
                    let_go(part)
                yield change.shape[-1]

    def _round(self, tile: Tile, leg: Leg, state: Sequence[np.ndarray]) -> Iterator[Found]:
        """One leg of all slices of a tile; `state` (channels, h, w, D) is what the leg before gave."""
        stream = SliceStream(depth=self.depth, most=self.at_once)
        if self.passage.device.type == "cpu":
            keep_memory_for((*tile.shape[:2], self.at_once))
        coming, done = self._passes(), 0
        while done < self.depth:
            start, stop = next(coming, (self.depth, self.depth))
            slab, former = self.passage.slab(start, stop), [_copied(array[..., start:stop]) for array in state]
            with torch.inference_mode(), stream:
                hu, level, *held = (
                    SliceStream.mark(x[None].to(self.passage.device), axis=-1, first=start)
                    for x in (slab[tile.in_plane][None], self.passage.level(start, slab), *former)
                )
                results = leg(hu, level, [(*tile.origin[:2], start)], tuple(held))
            found = [(SliceStream.first(result), result[0].float().cpu()) for result in results]
            done = min(first + values.shape[-1] for first, values in found)
            yield found

    def _finished(self, moments: Sequence[np.ndarray]) -> torch.Tensor:
        """Mean, and deviation where it was asked for, (channels, h, w, d)."""
        mean, *squares = map(_copied, moments)
        return torch.cat([mean, *(deviation(one, len(self.passage.draws)) for one in squares)])

    def _passes(self) -> Iterator[tuple[int, int]]:
        return ((k, min(k + self.at_once, self.depth)) for k in range(0, self.depth, self.at_once))

    def _room(self, shape: Sequence[int]) -> np.ndarray:
        """Zeros (..., D), float32, the values of a slice together."""
        return np.moveaxis(self.pages((shape[-1], *shape[:-1]), np.float32), 0, -1)


def _copied(part: np.ndarray) -> torch.Tensor:
    """A copy of slices that may lie on disk: what waits in a network must not hold their pages in memory."""
    copy = torch.from_numpy(part).clone()
    let_go(part)
    return copy


def _part(tile: Tile, start: int, stop: int) -> Tile:
    """Some slices of a tile."""
    return Tile(tile.rows, tile.columns, plain(start, stop))
