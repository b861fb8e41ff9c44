"""Patches as another reconstruction of the same scan would give them: a smoother kernel, other pixels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from bundle.data.choices import require_choice
from bundle.data.pixel_size import PixelSize, PixelSizeSampling
from bundle.degrade.blur import InPlaneBlur

_SAME_KERNEL = InPlaneBlur(mtf50_per_mm=math.inf)
_SAME_PIXELS = PixelSize()


@dataclass(frozen=True)
class Reconstruction:
    """A smoother kernel and then pixels of another size, for degraded image and target alike.

    Args:
        kernel: blur that takes the series' own kernel to the smoother one.
        pixels: resampling within slices.
    """

    kernel: InPlaneBlur = _SAME_KERNEL
    pixels: PixelSize = _SAME_PIXELS

    def __call__(self, volume_hu: np.ndarray, size: int | None = None, *, spacing_mm: tuple[float, ...]) -> np.ndarray:
        """Return HU (size, size, D) of (pixels.source(size), pixels.source(size), D); without size as many as fit."""
        smooth = self.kernel != _SAME_KERNEL
        return self.pixels(self.kernel.apply(volume_hu, spacing_mm=spacing_mm) if smooth else volume_hu, size)


@dataclass(frozen=True, kw_only=True)
class ReconstructionSampling:
    """How often, and how far, patches are reconstructed otherwise.

    Without it the noise of every sample has the grain of the training series' own kernels and pixels, and every target
    their sharpness: a head, with small pixels and a smooth kernel, has neither.

    Args:
        smooth_probability: of a smoother kernel.
        mtf50_per_mm: blurs, drawn with equal probability. A few, because what each does to the noise level is measured
            once for each series; gentler ones are narrower than pixels can show.
        pixels: how often pixels get another size.
    """

    smooth_probability: float = 0.0
    mtf50_per_mm: Sequence[float] = (0.5, 0.35)
    pixels: PixelSizeSampling = field(default_factory=PixelSizeSampling)

    def __post_init__(self) -> None:
        require_choice(smooth_probability=self.smooth_probability, mtf50_per_mm=self.mtf50_per_mm)

    def draw(self, rng: np.random.Generator, *, pixels: int, wanted: int) -> Reconstruction:
        """Draw a reconstruction.

        Args:
            rng: source of randomness; four draws are always taken.
            pixels: how many the series has along its shorter side.
            wanted: how many a patch needs.
        """
        size = self.pixels.draw(rng, pixels=pixels, wanted=wanted)
        chosen, position = rng.random(2)
        if chosen >= self.smooth_probability:
            return Reconstruction(pixels=size)
        blur = float(self.mtf50_per_mm[int(position * len(self.mtf50_per_mm))])
        return Reconstruction(InPlaneBlur(mtf50_per_mm=blur), size)
