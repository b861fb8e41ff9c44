"""From HU to HU: a network applied to volumes of any size, tile by tile and slab by slab."""

import copy
import dataclasses
import functools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from monai.inferers import Inferer

from bundle.configuration import checked_number, three_numbers
from bundle.diffusion.bridge import BrownianBridge
from bundle.diffusion.process import State
from bundle.errors import BundleError
from bundle.networks.precision import Precision, resolve_precision
from bundle.networks.presets import PRESETS
from bundle.networks.restorer import Restorer
from bundle.pages import Pages, plain_pages
from bundle.restoration.draws import STEPS_OF_A_LEG, Draw, Leg
from bundle.restoration.mirrors import COUNTS, FLIPS
from bundle.restoration.passes import Finished, Passage
from bundle.restoration.rounds import Rounds
from bundle.restoration.tiles import Span, cut

logger = logging.getLogger(__name__)

# Slices that go through whole where more would flow: what flowing them takes less in memory it takes more in time.
MOST_WHOLE = 16


@dataclass(frozen=True)
class Piece:
    """Slices of a restoration.

    Attributes:
        first: number of the first slice.
        difference: restored minus input, HU (H, W, d), float32.
        deviation: standard deviation over the samples, HU (H, W, d); None with one sample.
        worked: slices' worth of work since the piece before, for progress; of all pieces, the volume's slices.
    """

    first: int
    difference: torch.Tensor
    deviation: torch.Tensor | None
    worked: int

    @property
    def slices(self) -> slice:
        """Which slices of the volume these are."""
        return slice(self.first, self.first + self.difference.shape[-1])


class RestorationInferer(Inferer):
    """Applies a Restorer to HU volumes in overlapping tiles whose noise depends on positions alone.

    Args:
        tile_size: H, W, D of a tile in voxels; larger than the volume means one tile along that axis.
        overlap: least share of a tile's rows and columns that neighbours repeat.
        slice_overlap: least number of slices that neighbours repeat; at most half a tile, which None stands for.
        slices_at_once: of a volume of more than 16 slices (half a tile, if that is less), so many flow through the
            network at a time, none twice (networks.slice_stream); tiles then cut rows and columns only. With 0, and
            for networks that cannot (`slices_flow`), slices are cut into tiles as well.
        steps: 1 gives the deterministic one-step restoration of the bridge; more draw samples.
        num_samples: draws that are averaged.
        flips: mirror images that one step is averaged over: 1, 2 or 4.
        seed: of the draws.
        tile_batch_size: tiles that the network is given at once.
        skip_air: leave out what lies outside the body's box; nothing is changed there.
        mixed_precision: 'auto', 'bf16', 'fp16' or 'off'.
        device: where the network runs.
        scratch: where samples, mirror images and many steps of slices that flow are kept.
    """

    def __init__(
        self,
        *,
        tile_size: Sequence[int] = PRESETS["small"].tile_size,
        overlap: float = 0.25,
        slice_overlap: int | None = None,
        slices_at_once: int = 4,
        steps: int = 1,
        num_samples: int = 1,
        flips: int = 1,
        seed: int = 0,
        tile_batch_size: int = 1,
        skip_air: bool = False,
        mixed_precision: str = "auto",
        device: torch.device | str = "cpu",
        scratch: Pages = plain_pages,
    ) -> None:
        super().__init__()
        if flips not in COUNTS:
            raise BundleError(f"flips must be 1, 2 or 4, not {flips}")
        self.tile_size = three_numbers("tile_size", tile_size, int, low=1)
        self.overlap = checked_number("overlap", overlap, float, low=0, below=1)
        most = self.tile_size[2] // 2
        self.slice_overlap = (
            most if slice_overlap is None else checked_number("slice_overlap", slice_overlap, int, low=0)
        )
        self.slices_at_once = checked_number("slices_at_once", slices_at_once, int, low=0)
        self.steps = checked_number("steps", steps, int, low=1, high=1000)
        self.num_samples = checked_number("num_samples", num_samples, int, low=1)
        self.flips = flips
        self.seed = checked_number("seed", seed, int, low=0)
        self.tile_batch_size = checked_number("tile_batch_size", tile_batch_size, int, low=1)
        if self.slice_overlap > most:
            logger.warning("slice_overlap %d is more than half a tile: %d is used", self.slice_overlap, most)
        self.skip_air = skip_air
        self.precision: Precision = resolve_precision(mixed_precision, device)
        self.device = torch.device(device)
        self.scratch = scratch

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
        if network.seams_in_tiles and self.cuts(network, volume.shape):
            logger.warning(
                "tiles smaller than the volume: this network sees all of a slice, and there will be seams; "
                "let slices flow (neither exported_dir nor compile), in a tile_size of all rows and columns"
            )
        most = STEPS_OF_A_LEG if self.flows(network, volume.shape) else None
        draws = [draw.legs(most) for draw in self._draws(network, spacing_mm)]
        for first, values, worked in self._run(volume, network, draws, noise_level):
            yield Piece(first, values[0], values[1] if len(values) == 2 else None, worked)

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

    @property
    def most_whole(self) -> int:
        """Slices of the deepest volume that goes through whole where deeper ones flow."""
        return min(MOST_WHOLE, self.tile_size[2] // 2)

    def flows(self, network: Restorer, size: Sequence[int]) -> bool:
        """Whether a volume of H, W, D will flow through this network."""
        return size[2] > self.most_whole and self.slices_at_once > 0 and network.slices_flow

    def cuts(self, network: Restorer, size: Sequence[int]) -> bool:
        """Whether a volume of H, W, D will be cut into tiles; slices that flow are not, along that axis."""
        axes = 2 if self.flows(network, size) else 3
        return any(tile < extent for tile, extent in zip(self.tile_size[:axes], size[:axes], strict=True))

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

        def reconstruct(tile_hu: torch.Tensor, *_: object) -> State:
            with self.precision.autocast():
                decoded = network.reconstruct(network.units.from_hu(tile_hu))
                return (network.linear.to_hu(decoded.float()) - tile_hu,)

        result = inputs.float().clone()
        for number, volume in enumerate(inputs[:, 0]):
            level = torch.zeros(volume.shape[-1])
            for first, values, _ in self._run(volume, network, [[reconstruct]], level):
                result[number, 0, ..., first : first + values.shape[-1]] += values[0].to(result.device)
        return result

    def _run(
        self,
        volume: torch.Tensor,
        network: Restorer,
        draws: Sequence[Sequence[Leg]],
        noise_level: torch.Tensor | None,
    ) -> Iterator[Finished]:
        passage = Passage(
            volume=volume,
            noise_level=noise_level,
            draws=draws,
            deviation=self.num_samples > 1 and len(draws) > 1,
            spans=functools.partial(self.spans, multiple=network.multiple),
            multiple=network.multiple,
            skip_air=self.skip_air,
            device=self.device,
        )
        if self.flows(network, volume.shape):
            return Rounds(passage, at_once=self.slices_at_once, pages=self.scratch).flowing()
        slabs = self.spans(2, 0, volume.shape[2], multiple=1)
        return passage.tiled(slabs, batch=self.tile_batch_size)

    def _draws(self, network: Restorer, spacing_mm: torch.Tensor | None) -> list[Draw]:
        draw = Draw(network=network, spacing_mm=spacing_mm, precision=self.precision, seed=self.seed)
        if self.steps == 1 and self.num_samples == 1:
            return [dataclasses.replace(draw, axes=axes) for axes in FLIPS[: self.flips]]
        return [dataclasses.replace(draw, steps=self.steps, number=number) for number in range(self.num_samples)]
