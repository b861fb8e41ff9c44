"""Patches of weaker contrast: tissue and noise scaled alike, so that any series teaches what little noise is."""

from dataclasses import dataclass

import numpy as np

from bundle.data.choices import require_choice

PIVOT_HU = 40.0  # soft tissue stays where it is


@dataclass(frozen=True)
class Contrast:
    """hu -> PIVOT_HU + scale (hu - PIVOT_HU) + offset_hu."""

    scale: float = 1.0
    offset_hu: float = 0.0

    def __call__(self, volume_hu: np.ndarray) -> np.ndarray:
        """Return float32 HU of the same shape."""
        if self == Contrast():
            return volume_hu
        return ((volume_hu - PIVOT_HU) * self.scale + (PIVOT_HU + self.offset_hu)).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class ContrastSampling:
    """How often, and how far, a patch's contrast is weakened.

    A brain's grey and white matter differ by ten HU and are scanned at three HU of noise; chests and abdomens by
    hundreds, at ten to forty. Scaled, they give such targets, with the texture of noise that real kernels have.

    Args:
        probability: of scaling at all.
        lowest: smallest scale; scales are log-uniform up to 1.
        offset_hu: largest shift of all values, either way.
    """

    probability: float = 0.0
    lowest: float = 0.1
    offset_hu: float = 50.0

    def __post_init__(self) -> None:
        require_choice(probability=self.probability)
        if not 0 < self.lowest <= 1:
            raise ValueError(f"lowest must be above 0 and at most 1, not {self.lowest}")

    def draw(self, rng: np.random.Generator) -> Contrast:
        """Draw a contrast; three draws are always taken."""
        chosen, position, offset = rng.random(3)
        if chosen >= self.probability:
            return Contrast()
        return Contrast(float(self.lowest**position), float((2 * offset - 1) * self.offset_hu))
