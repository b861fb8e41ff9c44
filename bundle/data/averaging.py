"""Training targets of less noise: neighbouring slices averaged to a thicker slice, as a scanner reconstructs it."""

from dataclasses import dataclass

import numpy as np

from bundle.data.choices import require_choice


@dataclass(frozen=True, kw_only=True)
class SlabSampling:
    """How often, and how far, the slices of a patch are averaged: n slices without overlap make one.

    A thick slice is the mean of thin ones, so that target and noise of the slab are what the same scan would have
    given with thicker slices: less noise, and partial volume along the slices. A model that only sees the noise of
    thin slices would never learn what less noise looks like.

    Args:
        probability: of averaging at all, where the series allows it.
        most: largest n.
        most_mm: thickest slab in mm; series with slices as thick are left alone.
    """

    probability: float = 0.0
    most: int = 5
    most_mm: float = 6.0

    def __post_init__(self) -> None:
        require_choice(probability=self.probability)
        if self.most < 1:
            raise ValueError(f"most must be at least 1, not {self.most}")

    def draw(self, rng: np.random.Generator, *, spacing_mm: float, slices: int, wanted: int) -> int:
        """Draw how many slices make one.

        Args:
            rng: source of randomness; two draws are always taken.
            spacing_mm: distance of the series' slices.
            slices: how many there are.
            wanted: how many slabs are needed.
        """
        most = min(self.most, int(self.most_mm / spacing_mm), slices // wanted)
        average, position = rng.random(2)
        return 2 + int(position * (most - 1)) if average < self.probability and most > 1 else 1


def average(volume: np.ndarray, slices: int) -> np.ndarray:
    """Mean of every `slices` neighbours along the last axis, float32 (H, W, D / slices)."""
    height, width, depth = volume.shape
    values = np.asarray(volume, np.float32)
    return values if slices == 1 else values.reshape(height, width, depth // slices, slices).mean(axis=3)
