"""A smoother reconstruction kernel: in-plane blur given by its modulation transfer function."""

import math
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter1d

_TRUNCATE = 4.0  # standard deviations to where the Gaussian is taken: what is beyond is 0.006 %


@dataclass(frozen=True, kw_only=True)
class InPlaneBlur:
    """Gaussian blur of every slice; its transfer function is exp(-ln 2 (f / mtf50)^2).

    The kernel of the result has the given scan's transfer function times this one. A Gaussian has no side lobes: edges
    do not ring, and the mean stays.

    Args:
        mtf50_per_mm: frequency at which half of the contrast is left, 1/mm; infinity changes nothing.
    """

    mtf50_per_mm: float

    def __post_init__(self) -> None:
        if not self.mtf50_per_mm > 0:
            raise ValueError(f"mtf50_per_mm must be above 0, not {self.mtf50_per_mm}")

    @property
    def sigma_mm(self) -> float:
        """Standard deviation of the Gaussian: its transform is exp(-2 pi^2 sigma^2 f^2)."""
        return math.sqrt(math.log(2) / 2) / (math.pi * self.mtf50_per_mm)

    def margin(self, spacing_mm: tuple[float, ...]) -> int:
        """How many pixels beyond a region take part in it."""
        return math.ceil(_TRUNCATE * self.sigma_mm / min(spacing_mm[:2])) + 1 if self.sigma_mm > 0 else 0

    def apply(self, volume: np.ndarray, *, spacing_mm: tuple[float, ...]) -> np.ndarray:
        """The blurred volume, float32 (H, W, D); mirrored at its edges, which makes the blur its own adjoint."""
        blurred = np.array(volume, np.float32)
        if self.sigma_mm > 0:
            for axis in (0, 1):
                sigma = self.sigma_mm / spacing_mm[axis]
                blurred = gaussian_filter1d(blurred, sigma, axis=axis, mode="reflect", truncate=_TRUNCATE)
        return blurred
