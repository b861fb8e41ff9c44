"""The images that a restoration is the mean of: one, several samples, or mirror images of one step."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from bundle.diffusion.noise import PositionalNoise
from bundle.diffusion.process import State
from bundle.networks.precision import Precision
from bundle.networks.restorer import Restorer
from bundle.networks.slice_stream import SliceStream
from bundle.restoration.mirrors import mirrored

# A part of the way to one image: (HU (B, 1, h, w, d), noise level (B, d), origins of the tiles, what the leg before
# returned) -> latents for the next leg, or, of the last one, the change (B, 1, h, w, d) in HU.
Leg = Callable[[torch.Tensor, torch.Tensor, Sequence[tuple[int, int, int]], State], State]
STEPS_OF_A_LEG = 4  # where slices flow, each step holds slices of its own; how much: commands.plan


@dataclass(frozen=True, kw_only=True)
class Draw:
    """One image of a restoration.

    Attributes:
        network: a Restorer.
        spacing_mm: (3,); None stands for a typical scan.
        precision: the number format it works in.
        steps: of its sampler; None is the deterministic one-step restoration.
        seed: of its noise.
        number: which draw of that seed.
        axes: what it is a mirror image along.
    """

    network: Restorer
    spacing_mm: torch.Tensor | None
    precision: Precision
    steps: int | None = None
    seed: int = 0
    number: int = 0
    axes: tuple[int, ...] = ()

    def legs(self, most_steps: int | None = None) -> list[Leg]:
        """The way to it, in legs of so many steps; None means one leg."""
        if self.steps is None:
            return [self._one_step]
        most = most_steps or self.steps
        parts = [range(first, min(first + most, self.steps)) for first in range(0, self.steps, most)]
        return [functools.partial(self._sampled, part) for part in parts]

    def _one_step(
        self, tile_hu: torch.Tensor, levels: torch.Tensor, origins: Sequence[tuple[int, int, int]], _: State
    ) -> State:
        spacing = self._spacing(tile_hu)
        with self.precision.autocast():
            x = self.network.units.from_hu(tile_hu)
            restored = mirrored(lambda image: self.network(image, spacing, levels).float(), x, self.axes)
            return (self.network.linear.to_hu(restored) - tile_hu,)

    def _sampled(
        self,
        part: range,
        tile_hu: torch.Tensor,
        levels: torch.Tensor,
        origins: Sequence[tuple[int, int, int]],
        state: State,
    ) -> State:
        assert self.steps is not None
        with self.precision.autocast():
            x = self.network.units.from_hu(tile_hu)
            factor = self.network.autoencoder.factor
            places = [(row // factor, column // factor, k) for row, column, k in origins]
            at = PositionalNoise(seed=self.seed, draw=self.number).at(places, self.network.latent_shape(x))
            state = self.network.advance(
                x,
                state,
                part=part,
                steps=self.steps,
                noise=lambda step: SliceStream.mark(at(step), axis=-1, first=origins[0][2]),
                spacing_mm=self._spacing(tile_hu),
                noise_level=levels,
            )
            if part.stop < self.steps:
                return state
            return (self.network.linear.to_hu(state[0].float()) - tile_hu,)

    def _spacing(self, tile_hu: torch.Tensor) -> torch.Tensor | None:
        if self.spacing_mm is None:
            return None
        return self.spacing_mm.to(tile_hu.device).expand(tile_hu.shape[0], 3)


def take_in(change: torch.Tensor, mean: torch.Tensor, squares: torch.Tensor | None = None, *, count: int) -> None:
    """Add the image number `count` (from 1) to the mean and the sum of squared deviations, in place (Welford 1962)."""
    step = change - mean
    mean += step / count
    if squares is not None:
        squares += step * (change - mean)


def deviation(squares: torch.Tensor, count: int) -> torch.Tensor:
    """Standard deviation (n - 1) of so many images."""
    return (squares / max(count - 1, 1)).sqrt()
