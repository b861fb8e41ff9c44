"""From HU to HU: a network applied to volumes of any size, tile by tile and slab by slab."""

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.inferers import Inferer

from bundle.configuration import checked_number, three_numbers
from bundle.diffusion.bridge import BrownianBridge
from bundle.diffusion.noise import PositionalNoise
from bundle.errors import BundleError
from bundle.metrics.noise import noise_level as estimate_noise
from bundle.networks.precision import Precision, release_freed_memory, resolve_precision
from bundle.networks.restorer import Restorer
from bundle.restoration.mirrors import COUNTS, mean_over_flips
from bundle.restoration.region import dense_box
from bundle.restoration.tiles import Assembly, Span, Tile, cut

logger = logging.getLogger(__name__)

# (HU (B, 1, h, w, d), noise level (B, d), origins of the tiles) -> change (B, channels, h, w, d) in HU.
_TileFunction = Callable[[torch.Tensor, torch.Tensor, Sequence[tuple[int, int, int]]], torch.Tensor]


@dataclass(frozen=True)
class Piece:
    """Slices of a restoration.

    Attributes:
        first: number of the first slice.
        difference: restored minus input, HU (H, W, d), float32.
        deviation: standard deviation over the samples, HU (H, W, d); None with one sample.
    """

    first: int
    difference: torch.Tensor
    deviation: torch.Tensor | None

    @property
    def slices(self) -> slice:
        """Which slices of the volume these are."""
        return slice(self.first, self.first + self.difference.shape[-1])


class RestorationInferer(Inferer):
    """Applies a Restorer to HU volumes in overlapping tiles whose noise depends on positions alone.

    Args:
        tile_size: H, W, D of a tile in voxels; larger than the volume means one tile along that axis.
        overlap: least share of a tile's rows and columns that neighbours repeat.
        slice_overlap: least number of slices that neighbours repeat; at most half a tile.
        steps: 1 gives the deterministic one-step restoration of the bridge; more draw samples.
        num_samples: draws that are averaged.
        flips: mirror images that one step is averaged over: 1, 2 or 4.
        seed: of the draws.
        tile_batch_size: tiles that the network is given at once.
        skip_air: leave out what lies outside the body's box; nothing is changed there.
        mixed_precision: 'auto', 'bf16', 'fp16' or 'off'.
        device: where the network runs.
    """

    def __init__(
        self,
        *,
        tile_size: Sequence[int] = (512, 512, 24),
        overlap: float = 0.25,
        slice_overlap: int = 8,
        steps: int = 1,
        num_samples: int = 1,
        flips: int = 1,
        seed: int = 0,
        tile_batch_size: int = 1,
        skip_air: bool = False,
        mixed_precision: str = "auto",
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        if flips not in COUNTS:
            raise BundleError(f"flips must be 1, 2 or 4, not {flips}")
        self.tile_size = three_numbers("tile_size", tile_size, int, low=1)
        self.overlap = checked_number("overlap", overlap, float, low=0, below=1)
        self.slice_overlap = checked_number("slice_overlap", slice_overlap, int, low=0)
        self.steps = checked_number("steps", steps, int, low=1, high=1000)
        self.num_samples = checked_number("num_samples", num_samples, int, low=1)
        self.flips = flips
        self.seed = checked_number("seed", seed, int, low=0)
        self.tile_batch_size = checked_number("tile_batch_size", tile_batch_size, int, low=1)
        if self.slice_overlap > (most := self.tile_size[2] // 2):
            logger.warning("slice_overlap %d is more than half a tile: %d is used", self.slice_overlap, most)
        self.skip_air = skip_air
        self.precision: Precision = resolve_precision(mixed_precision, device)
        self.device = torch.device(device)

    def __call__(  # type: ignore[override]
        self,
        inputs: torch.Tensor,
        network: Restorer,
        *,
        spacing_mm: torch.Tensor | None = None,
        noise_level: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return restored HU (B, 1, H, W, D), float32.

        Args:
            inputs: HU (B, 1, H, W, D).
            network: a Restorer.
            spacing_mm: (B, 3).
            noise_level: HU per slice (B, D); None measures it slice by slice.
        """
        restored = inputs.float().clone()
        for number, volume in enumerate(inputs[:, 0]):
            spacing = None if spacing_mm is None else spacing_mm[number]
            level = None if noise_level is None else noise_level[number]
            for piece in self.pieces(volume, network, spacing_mm=spacing, noise_level=level):
                restored[number, 0, ..., piece.slices] += piece.difference.to(restored.device)
        return restored

    def pieces(
        self,
        volume: torch.Tensor,
        network: Restorer,
        *,
        spacing_mm: torch.Tensor | None = None,
        noise_level: torch.Tensor | None = None,
    ) -> Iterator[Piece]:
        """Yield a restoration slab by slab, in order; memory goes with the tiles, not with the volume.

        Args:
            volume: HU (H, W, D), any number type; slabs of it are converted.
            network: a Restorer.
            spacing_mm: (3,).
            noise_level: HU per slice (D,); None measures it slice by slice.

        Raises:
            BundleError: as `require_fit` does.
        """
        self.require_fit(network)
        function = self._restoration(network, spacing_mm)
        channels = 2 if self.num_samples > 1 else 1
        yield from self._run(volume, function, noise_level, channels=channels, multiple=network.multiple)

    def require_fit(self, network: Restorer) -> None:
        """Refuse settings that this network's process cannot work with.

        Raises:
            BundleError: when samples are asked for that could not differ, flips of draws, or more steps than there are.
        """
        if self.num_samples > 1 and self.steps == 1 and isinstance(network.process, BrownianBridge):
            raise BundleError(
                "num_samples above 1 needs steps above 1: one step of the bridge is the mean and draws nothing",
                hint="set --steps 4, or --num_samples 1",
            )
        if self.flips > 1 and (self.steps > 1 or self.num_samples > 1):
            raise BundleError(
                "flips above 1 is for one step, which is a mean; draws are averaged with num_samples",
                hint="set --steps 1, or --flips 1",
            )
        if self.steps > 1 and self.steps > (most := network.process.most_steps):
            raise BundleError(
                f"steps must be at most {most} with this sampler and start_time, not {self.steps}",
                hint="set fewer --steps, or a larger --start_time",
            )

    def spans(self, axis: int, start: int, stop: int, *, multiple: int) -> list[Span]:
        """Tiles of voxels start to stop along an axis (0 rows, 1 columns, 2 slices); `multiple` is the network's."""
        tile = self.tile_size[axis]
        if axis == 2:
            return cut(start, stop, tile=tile, overlap=min(self.slice_overlap, tile // 2))
        return cut(start, stop, tile=tile, overlap=tile - max(int(tile * (1 - self.overlap)), 1), multiple=multiple)

    def with_steps(self, steps: int) -> "RestorationInferer":
        """Return the same inferer with another number of steps, one sample each."""
        other = copy.copy(self)
        other.steps, other.num_samples, other.flips = steps, 1, 1
        return other

    def reconstruct(self, inputs: torch.Tensor, network: Restorer) -> torch.Tensor:
        """Return decode(encode(inputs)), HU (B, 1, H, W, D), by the same tiles: the autoencoder's ceiling."""

        def reconstruct(tile_hu: torch.Tensor, levels: torch.Tensor, origins: Sequence[object]) -> torch.Tensor:
            with self.precision.autocast():
                decoded = network.reconstruct(network.units.from_hu(tile_hu))
            return network.linear.to_hu(decoded.float()) - tile_hu

        result = inputs.float().clone()
        for number, volume in enumerate(inputs[:, 0]):
            level = torch.zeros(volume.shape[-1])
            for piece in self._run(volume, reconstruct, level, channels=1, multiple=network.multiple):
                result[number, 0, ..., piece.slices] += piece.difference.to(result.device)
        return result

    def _run(
        self,
        volume: torch.Tensor,
        function: _TileFunction,
        noise_level: torch.Tensor | None,
        *,
        channels: int,
        multiple: int,
    ) -> Iterator[Piece]:
        assembly = Assembly(channels, volume.shape[:2])
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
                changes = function(inputs_hu, levels, [tile.origin for tile, _, _ in waiting]).float().cpu()
            for (tile, _, _), change in zip(waiting, changes, strict=True):
                assembly.add(tile, change)
            waiting.clear()

        for slices, slab, level in self._slabs(volume, noise_level):
            # Slabs come in order: nothing that comes later reaches slices before this one's first.
            if not waiting:
                yield from map(_piece, assembly.finished(slices.start))
            for tile in self._tiles(slices, slab, multiple=multiple):
                if len(waiting) == self.tile_batch_size or (waiting and waiting[0][0].shape != tile.shape):
                    work_off()
                    yield from map(_piece, assembly.finished(slices.start))
                waiting.append((tile, slab[tile.in_plane], level))
        work_off()
        yield from map(_piece, assembly.finished(volume.shape[2]))

    def _slabs(
        self, volume: torch.Tensor, noise_level: torch.Tensor | None
    ) -> Iterator[tuple[Span, torch.Tensor, torch.Tensor]]:
        """Slabs in order: where along the slices, HU (H, W, d), noise levels (d,)."""
        levels = np.full(volume.shape[2], np.nan, np.float32)
        if noise_level is not None:
            levels[:] = noise_level.float().cpu().numpy()
        for slices in self.spans(2, 0, volume.shape[2], multiple=1):
            slab = volume[..., slices.start : slices.stop].to(torch.float32)
            fresh = [k for k in range(slices.start, slices.stop) if np.isnan(levels[k])]
            if fresh:  # the overlap's were measured with the slab before
                levels[fresh] = estimate_noise(slab[..., fresh[0] - slices.start :].cpu().numpy())
            yield slices, slab, torch.from_numpy(levels[slices.start : slices.stop].copy())

    def _tiles(self, slices: Span, slab: torch.Tensor, *, multiple: int) -> list[Tile]:
        """The tiles of a slab (H, W, d); none where it is air."""
        box = dense_box(slab, multiple=multiple) if self.skip_air else ((0, slab.shape[0]), (0, slab.shape[1]))
        if box is None:
            return []
        rows, columns = (self.spans(axis, *box[axis], multiple=multiple) for axis in (0, 1))
        return [Tile(row, column, slices) for row in rows for column in columns]

    def _restoration(self, network: Restorer, spacing_mm: torch.Tensor | None) -> _TileFunction:
        def restore(
            tile_hu: torch.Tensor, levels: torch.Tensor, origins: Sequence[tuple[int, int, int]]
        ) -> torch.Tensor:
            x = network.units.from_hu(tile_hu)
            spacing = None if spacing_mm is None else spacing_mm.to(x.device).expand(x.shape[0], 3)

            def change(restored: torch.Tensor) -> torch.Tensor:
                return network.linear.to_hu(restored.float()) - tile_hu

            with self.precision.autocast():
                if self.steps == 1 and self.num_samples == 1:
                    return change(
                        mean_over_flips(lambda image: network(image, spacing, levels).float(), x, flips=self.flips)
                    )
                shape, factor = network.latent_shape(x), network.autoencoder.factor
                places = [(row // factor, column // factor, k) for row, column, k in origins]
                draws = (
                    change(
                        network.sample(
                            x,
                            steps=self.steps,
                            noise=PositionalNoise(seed=self.seed, draw=draw).at(places, shape),
                            spacing_mm=spacing,
                            noise_level=levels,
                        )
                    )
                    for draw in range(self.num_samples)
                )
                return next(draws) if self.num_samples == 1 else _mean_and_deviation(draws)

        return restore


def _piece(finished: tuple[int, torch.Tensor]) -> Piece:
    first, values = finished
    return Piece(first, values[0], values[1] if len(values) > 1 else None)


def _mean_and_deviation(draws: Iterator[torch.Tensor]) -> torch.Tensor:
    """Mean and standard deviation (n - 1) of draws (B, 1, ...), as (B, 2, ...), one draw in memory (Welford 1962)."""
    mean = next(draws).clone()
    squares, count = torch.zeros_like(mean), 1
    for draw in draws:
        count += 1
        step = draw - mean
        mean += step / count
        squares += step * (draw - mean)
    return torch.cat([mean, (squares / max(count - 1, 1)).sqrt()], dim=1)
