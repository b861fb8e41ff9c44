"""A volume and what is applied to it, in overlapping tiles; for slices that flow see restoration.rounds."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from bundle.diffusion.process import State
from bundle.metrics.noise import noise_level as estimate_noise
from bundle.networks.precision import keep_memory_for
from bundle.pages import let_go
from bundle.restoration.draws import Leg, deviation, take_in
from bundle.restoration.region import Box, dense_box
from bundle.restoration.tiles import Assembly, Span, Tile


class Finished(NamedTuple):
    """What a passage yields.

    Attributes:
        first: number of the first slice.
        values: mean change, and its deviation where that was asked for, HU (channels, H, W, d); d may be 0.
        worked: slices' worth of work since the one before; over all of a volume the number of its slices.
    """

    first: int
    values: torch.Tensor
    worked: int


Cut = tuple[Tile, torch.Tensor, torch.Tensor]  # where, its HU (h, w, d) and noise levels (d,)


class Passage:
    """One volume and what is applied to it.

    Args:
        volume: HU (H, W, D), any number type; slabs of it are converted.
        noise_level: HU per slice (D,); None measures it slice by slice.
        draws: the legs of each image that the result is the mean of.
        deviation: give that of the images, too.
        spans: (axis 0 rows or 1 columns, first voxel, one past the last) to tiles along that axis.
        multiple: tiles start at multiples of it.
        skip_air: leave out what lies outside the body's box.
        device: where the network runs.
    """

    def __init__(
        self,
        *,
        volume: torch.Tensor,
        noise_level: torch.Tensor | None,
        draws: Sequence[Sequence[Leg]],
        deviation: bool,
        spans: Callable[[int, int, int], list[Span]],
        multiple: int,
        skip_air: bool,
        device: torch.device,
    ) -> None:
        self.volume, self.draws, self.deviation = volume, draws, deviation
        self.spans, self.multiple, self.skip_air, self.device = spans, multiple, skip_air, device
        self.depth = volume.shape[2]
        self._levels = np.full(self.depth, np.nan, np.float32)
        if noise_level is not None:
            self._levels[:] = noise_level.float().cpu().numpy()

    def tiled(self, slabs: Sequence[Span], *, batch: int) -> Iterator[Finished]:
        """Yield finished slices in order, from overlapping slabs cut into tiles, `batch` of which run at a time.

        Args:
            slabs: along the slices, in order.
            batch: tiles at a time.
        """
        assembly = self.assembly()
        waiting: list[Cut] = []

        def work_off() -> None:
            if not waiting:
                return
            changes = self._mean(waiting)
            for (tile, _, _), change in zip(waiting, changes.float().cpu(), strict=True):
                assembly.add(tile, change)
            waiting.clear()

        for slices in slabs:
            slab = self.slab(slices.start, slices.stop)
            level = self.level(slices.start, slab)
            # Slabs come in order: nothing that comes later reaches slices before this one's first.
            if not waiting:
                yield from told(assembly, slices.start)
            for tile in self.tiles(self.box(slab), slices):
                if len(waiting) == batch or (waiting and waiting[0][0].shape != tile.shape):
                    work_off()
                    yield from told(assembly, slices.start)
                waiting.append((tile, slab[tile.in_plane], level))
        work_off()
        yield from told(assembly, self.depth)

    def _mean(self, cuts: Sequence[Cut]) -> torch.Tensor:
        """Mean of the images of tiles, and their deviation where asked for, (B, channels, h, w, d)."""
        if self.device.type == "cpu":
            keep_memory_for(cuts[0][0].shape)
        # The values of a slice together in memory, as the networks want them.
        images = torch.stack([image.movedim(-1, 0) for _, image, _ in cuts])
        hu = images[:, None].movedim(2, -1).to(self.device)
        levels = torch.stack([level for _, _, level in cuts]).to(self.device)
        origins = [tile.origin for tile, _, _ in cuts]
        mean, squares = torch.zeros_like(hu), torch.zeros_like(hu) if self.deviation else None
        with torch.inference_mode():
            for count, legs in enumerate(self.draws, 1):
                state: State = ()
                for leg in legs:
                    state = leg(hu, levels, origins, state)
                take_in(state[0], mean, squares, count=count)
            return mean if squares is None else torch.cat([mean, deviation(squares, len(self.draws))], dim=1)

    def assembly(self) -> Assembly:
        """Return where tiles of this volume are added up."""
        return Assembly(1 + self.deviation, self.volume.shape[:2])

    def slab(self, start: int, stop: int) -> torch.Tensor:
        """HU (H, W, d), float32."""
        part = self.volume[..., start:stop]
        slab = part.to(torch.float32, copy=True)
        if part.device.type == "cpu" and part.dtype != torch.bfloat16:  # which numpy has not
            let_go(part.detach().numpy())
        return slab

    def level(self, start: int, slab: torch.Tensor) -> torch.Tensor:
        """Noise levels (d,), HU; those that a slab before had are not measured again."""
        levels = self._levels[start : start + slab.shape[-1]]
        fresh = np.flatnonzero(np.isnan(levels))
        if len(fresh):
            levels[fresh] = np.concatenate([estimate_noise(slab[..., k : k + 1].cpu().numpy()) for k in fresh])
        return torch.from_numpy(levels.copy())

    def box(self, slab: torch.Tensor) -> Box | None:
        """Rows and columns of a slab (H, W, d) that the network is given; None where it is air."""
        if self.skip_air:
            return dense_box(slab, multiple=self.multiple)
        return (0, slab.shape[0]), (0, slab.shape[1])

    def tiles(self, box: Box | None, slices: Span) -> list[Tile]:
        """Return the tiles of a box in these slices; none where it is air."""
        if box is None:
            return []
        rows, columns = (self.spans(axis, *box[axis]) for axis in (0, 1))
        return [Tile(row, column, slices) for row in rows for column in columns]


def told(assembly: Assembly, before: int) -> Iterator[Finished]:
    """Yield what is finished before that slice, its slices as the work done for it."""
    for first, values in assembly.finished(before):
        yield Finished(first, values, values.shape[-1])
