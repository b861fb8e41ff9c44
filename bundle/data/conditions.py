"""What a network is told of a patch, off by a random factor, so that it trusts the image more."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Told:
    """Factors by which what is told differs from what is so.

    Args:
        in_plane: of the distance of rows and columns.
        between: of the distance of slices.
        noise: of the noise level.
    """

    in_plane: float = 1.0
    between: float = 1.0
    noise: float = 1.0

    def spacing_mm(self, spacing_mm: tuple[float, float, float]) -> tuple[float, float, float]:
        """Return the spacing that is told for one in mm."""
        rows, columns, slices = spacing_mm
        return rows * self.in_plane, columns * self.in_plane, slices * self.between


@dataclass(frozen=True, kw_only=True)
class ToldSampling:
    """How far what is told may be off.

    A training set of a few series has a few spacings, each of which names a series and its kernel: told exactly, they
    are learned by heart, and of pixels smaller than any of them the network then assumes what it has never seen. A
    noise level is an estimate, too high or low where a kernel's noise lies in another band of frequencies.

    Args:
        spacing: largest factor, either way, in plane and between slices each for itself; log-uniform. 1: what is so.
        noise: the same for the noise level.
    """

    spacing: float = 1.0
    noise: float = 1.0

    def __post_init__(self) -> None:
        for name, factor in (("spacing", self.spacing), ("noise", self.noise)):
            if not 1 <= factor <= 10:
                raise ValueError(f"{name} must be a factor between 1 and 10, not {factor}")

    def draw(self, rng: np.random.Generator) -> Told:
        """Draw what is told; three draws are always taken."""
        in_plane, between, noise = 2 * rng.random(3) - 1
        return Told(float(self.spacing**in_plane), float(self.spacing**between), float(self.noise**noise))
