"""From HU to HU: a network applied to volumes of any size, tile by tile and slab by slab."""

import copy
import functools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from monai.inferers import Inferer

from bundle.configuration import checked_number, three_numbers
from bundle.diffusion.bridge import BrownianBridge
from bundle.diffusion.noise import PositionalNoise
from bundle.diffusion.process import Noise
from bundle.errors import BundleError
from bundle.networks.precision import Precision, resolve_precision
from bundle.networks.restorer import Restorer
from bundle.networks.slice_stream import SliceStream
from bundle.restoration.mirrors import COUNTS, mean_over_flips
from bundle.restoration.passes import Finished, Passage, TileFunction
from bundle.restoration.tiles import Span, cut

logger = logging.getLogger(__name__)

_MOST_STEPS_FLOWING = 4  # each holds slices of its own; how much: commands.plan


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
        slices_at_once: of a volume that is deeper than a tile and no larger in plane, so many flow through the
            network at a time, none twice (networks.slice_stream). With 0, for networks that cannot (`slices_flow`),
            and for samples, flips and many steps, each of which would hold slices of its own, all is cut into tiles.
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
        slices_at_once: int = 4,
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
        self.slices_at_once = checked_number("slices_at_once", slices_at_once, int, low=0)
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
        passing = self._run(volume, network, function, noise_level, channels=channels)
        for first, values in passing:
            yield Piece(first, values[0], values[1] if channels == 2 else None)

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

    def flows(self, network: Restorer, size: Sequence[int]) -> bool:
        """Whether a volume of H, W, D will flow through this network: deeper than a tile, and no larger in plane."""
        few = self.num_samples * self.flips == 1 and self.steps <= _MOST_STEPS_FLOWING
        (height, width, depth), most = size, self.tile_size
        fits = height <= most[0] and width <= most[1] and depth > most[2]
        return fits and few and self.slices_at_once > 0 and network.slices_flow

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
            for first, values in self._run(volume, network, reconstruct, level, channels=1):
                result[number, 0, ..., first : first + values.shape[-1]] += values[0].to(result.device)
        return result

    def _run(
        self,
        volume: torch.Tensor,
        network: Restorer,
        function: TileFunction,
        noise_level: torch.Tensor | None,
        *,
        channels: int,
    ) -> Finished:
        passage = Passage(
            volume=volume,
            noise_level=noise_level,
            function=function,
            channels=channels,
            spans=functools.partial(self.spans, multiple=network.multiple),
            multiple=network.multiple,
            skip_air=self.skip_air,
            device=self.device,
        )
        if self.flows(network, volume.shape):
            return passage.flowing(self.slices_at_once)
        return passage.tiled(self.spans(2, 0, volume.shape[2], multiple=1), batch=self.tile_batch_size)

    def _restoration(self, network: Restorer, spacing_mm: torch.Tensor | None) -> TileFunction:
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

                def noise(draw: int) -> Noise:
                    at = PositionalNoise(seed=self.seed, draw=draw).at(places, shape)
                    return lambda step: SliceStream.mark(at(step), axis=-1, first=origins[0][2])

                draws = (
                    change(
                        network.sample(x, steps=self.steps, noise=noise(draw), spacing_mm=spacing, noise_level=levels)
                    )
                    for draw in range(self.num_samples)
                )
                return next(draws) if self.num_samples == 1 else _mean_and_deviation(draws)

        return restore


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
