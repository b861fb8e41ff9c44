"""The deviation of a few draws, known better by that of the voxels around."""

import numpy as np
from scipy import ndimage

_NEIGHBOURS_PIXELS = 6.0  # standard deviation of the Gaussian that draws' variances are averaged with


def pooled(deviation: np.ndarray) -> np.ndarray:
    """Average the variances of neighbours within a slice: the deviation of a few draws, known better.

    Eight draws know their own spread to a quarter only, and what a single voxel's says is mostly that; the voxels
    around it have been drawn independently and have nearly the same (docs/experiments.md, 2026-11-30). A Gaussian of 6
    pixels, over what was drawn alone.

    Args:
        deviation: over the samples, HU (H, W), 0 where nothing was drawn.

    Returns:
        float32 HU (H, W), 0 where nothing was drawn.
    """
    values = deviation.astype(np.float32)
    drawn = values > 0
    total, weight = (
        ndimage.gaussian_filter(part, _NEIGHBOURS_PIXELS, mode="constant", truncate=3.0)
        for part in (values * values, drawn.astype(np.float32))
    )
    result: np.ndarray = np.sqrt(np.divide(total, weight, out=np.zeros_like(total), where=drawn))
    return result
