"""A volume's way through a network: its slices flow through, or it is cut into overlapping tiles."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from bundle.metrics.noise import noise_level as estimate_noise
from bundle.networks.precision import release_freed_memory
from bundle.networks.slice_stream import SliceStream
from bundle.restoration.region import Box, dense_box, joint_box
from bundle.restoration.tiles import Assembly, Span, Tile

# (HU (B, 1, h, w, d), noise level (B, d), origins of the tiles) -> change (B, channels, h, w, d) in HU.
TileFunction = Callable[[torch.Tensor, torch.Tensor, Sequence[tuple[int, int, int]]], torch.Tensor]
Finished = Iterator[tuple[int, torch.Tensor]]  # number of the first slice, change (channels, H, W, d)


@dataclass(frozen=True, kw_only=True)
class Passage:
    """One volume and what is applied to it.

    Attributes:
        volume: HU (H, W, D), any number type; slabs of it are converted.
        noise_level: HU per slice (D,); None measures it slice by slice.
        function: applied to tiles.
        channels: what it returns has so many.
        spans: (axis 0 rows or 1 columns, first voxel, one past the last) to tiles along that axis.
        multiple: tiles start at multiples of it.
        skip_air: leave out what lies outside the body's box.
        device: where the function runs.
    """

    volume: torch.Tensor
    noise_level: torch.Tensor | None
    function: TileFunction
    channels: int
    spans: Callable[[int, int, int], list[Span]]
    multiple: int
    skip_air: bool
    device: torch.device

    def flowing(self, at_once: int) -> Finished:
        """Yield finished slices in order; they flow, `at_once` at a time, and come out as those of the whole volume.

        Rows and columns are not cut; the body's box is that of all slices.
        """
        depth = self.volume.shape[2]
        slabs = [_plain(k, min(k + at_once, depth)) for k in range(0, depth, at_once)]
        box = joint_box([self._box(self._slab(slab)) for slab in slabs])
        assembly = Assembly(self.channels, self.volume.shape[:2])
        if box is None:
            yield from assembly.finished(depth)
            return
        stream, coming, done, after = (
            SliceStream(depth=depth, most=at_once),
            self._slabs(slabs),
            0,
            _plain(depth, depth),
        )
        rows, columns = (_plain(*limits) for limits in box)
        if self.device.type == "cpu":
            release_freed_memory()
        while done < depth:
            slices, slab, levels = next(coming, (after, self._slab(after), torch.zeros(0)))
            tile = Tile(rows, columns, slices)
            with torch.inference_mode(), stream:
                hu = SliceStream.mark(slab[tile.in_plane][None, None].to(self.device), axis=-1, first=slices.start)
                level = SliceStream.mark(levels[None].to(self.device), axis=-1, first=slices.start)
                change = self.function(hu, level, [tile.origin])
                first = SliceStream.first(change)
            done = first + change.shape[-1]
            assembly.add(Tile(rows, columns, _plain(first, done)), change[0].float().cpu())
            yield from assembly.finished(done)

    def tiled(self, slabs: Sequence[Span], *, batch: int) -> Finished:
        """Yield finished slices in order, from overlapping slabs cut into tiles, `batch` of which run at a time."""
        assembly = Assembly(self.channels, self.volume.shape[:2])
        waiting: list[tuple[Tile, torch.Tensor, torch.Tensor]] = []
        former: tuple[int, ...] | None = None

        def work_off() -> None:
            nonlocal former
            if not waiting:
                return
            if waiting[0][0].shape != former and self.device.type == "cpu":
                release_freed_memory()
            former = waiting[0][0].shape
            inputs_hu = torch.stack([image for _, image, _ in waiting])[:, None].to(self.device)
            levels = torch.stack([level for _, _, level in waiting]).to(self.device)
            with torch.inference_mode():
                changes = self.function(inputs_hu, levels, [tile.origin for tile, _, _ in waiting]).float().cpu()
            for (tile, _, _), change in zip(waiting, changes, strict=True):
                assembly.add(tile, change)
            waiting.clear()

        for slices, slab, level in self._slabs(slabs):
            # Slabs come in order: nothing that comes later reaches slices before this one's first.
            if not waiting:
                yield from assembly.finished(slices.start)
            for tile in self._tiles(self._box(slab), slices):
                if len(waiting) == batch or (waiting and waiting[0][0].shape != tile.shape):
                    work_off()
                    yield from assembly.finished(slices.start)
                waiting.append((tile, slab[tile.in_plane], level))
        work_off()
        yield from assembly.finished(self.volume.shape[2])

    def _slab(self, slices: Span) -> torch.Tensor:
        return self.volume[..., slices.start : slices.stop].to(torch.float32)

    def _slabs(self, slabs: Sequence[Span]) -> Iterator[tuple[Span, torch.Tensor, torch.Tensor]]:
        """Slabs in order: where along the slices, HU (H, W, d), noise levels (d,)."""
        levels = np.full(self.volume.shape[2], np.nan, np.float32)
        if self.noise_level is not None:
            levels[:] = self.noise_level.float().cpu().numpy()
        for slices in slabs:
            slab = self._slab(slices)
            fresh = [k for k in range(slices.start, slices.stop) if np.isnan(levels[k])]
            if fresh:  # the overlap's were measured with the slab before
                levels[fresh] = estimate_noise(slab[..., fresh[0] - slices.start :].cpu().numpy())
            yield slices, slab, torch.from_numpy(levels[slices.start : slices.stop].copy())

    def _box(self, slab: torch.Tensor) -> Box | None:
        """Rows and columns of a slab (H, W, d) that the network is given; None where it is air."""
        if self.skip_air:
            return dense_box(slab, multiple=self.multiple)
        return (0, slab.shape[0]), (0, slab.shape[1])

    def _tiles(self, box: Box | None, slices: Span) -> list[Tile]:
        if box is None:
            return []
        rows, columns = (self.spans(axis, *box[axis]) for axis in (0, 1))
        return [Tile(row, column, slices) for row in rows for column in columns]


def _plain(start: int, stop: int) -> Span:
    """Voxels that no other tile has a share in."""
    return Span(start, stop, np.ones(stop - start, np.float32))
