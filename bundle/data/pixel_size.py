"""Patches with larger or smaller pixels: scanners reconstruct the same anatomy on other fields of view."""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import zoom

from bundle.data.choices import require_choice


@dataclass(frozen=True)
class PixelSize:
    """Resampling within slices to pixels `factor` times as large; slices stay.

    A cubic spline (Unser, IEEE Signal Process. Mag. 16, 1999), mirrored at the patch's edges, without a filter before
    it: as in a scanner, larger pixels fold what lies beyond their Nyquist frequency.
    """

    factor: float = 1.0

    def source(self, size: int) -> int:
        """How many of the series' pixels become `size` pixels."""
        return round(size * self.factor)

    def __call__(self, volume_hu: np.ndarray, size: int | None = None) -> np.ndarray:
        """Return float32 HU (size, size, D) of (source(size), source(size), D); without size as many as fit."""
        if self.factor == 1:
            return volume_hu
        target = (size or int(length / self.factor) for length in volume_hu.shape[:2])
        factors = [new / old for new, old in zip(target, volume_hu.shape[:2], strict=True)]
        slices = (np.asarray(volume_hu[:, :, k], np.float32) for k in range(volume_hu.shape[2]))
        resampled = [zoom(image, factors, order=3, mode="grid-mirror", grid_mode=True) for image in slices]
        return np.stack(resampled, axis=2)


@dataclass(frozen=True, kw_only=True)
class PixelSizeSampling:
    """How often, and how far, the pixels of a patch are resampled, degraded image and target alike.

    A few fixed factors, because what each does to the noise level is measured once for each series.

    Args:
        probability: of resampling at all.
        factors: one of these is drawn.
    """

    probability: float = 0.0
    factors: tuple[float, ...] = (0.75, 0.875, 1.25, 1.5)

    def __post_init__(self) -> None:
        require_choice(probability=self.probability, factors=self.factors)

    def draw(self, rng: np.random.Generator, *, pixels: int, wanted: int) -> PixelSize:
        """Draw a pixel size.

        Args:
            rng: source of randomness; two draws are always taken.
            pixels: how many the series has along its shorter side.
            wanted: how many a patch needs.
        """
        chosen, position = rng.random(2)
        drawn = PixelSize(self.factors[int(position * len(self.factors))])
        return drawn if chosen < self.probability and drawn.source(wanted) <= pixels else PixelSize()
