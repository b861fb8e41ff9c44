"""Structure in the residual: how much anatomy left the image together with the noise. Arrays are HU (H, W, D)."""

import numpy as np
from scipy import ndimage

FINE_PIXELS = 1.0
COARSE_PIXELS = 4.0
NOISE_FACTOR = 5.0  # detail this far above the noise that is left in it is anatomy
QUIET_SHARE = 0.1  # of the voxels: far from any edge, what is left there is noise
_GAUSSIAN_QUANTILE = 0.12566134685507402  # that quantile of the absolute value of a standard normal


def structure_in_residual(residual_hu: np.ndarray, target_hu: np.ndarray, mask: np.ndarray) -> float:
    """Share of the anatomy's detail that the residual (input minus restoration) carries; 0 is none.

    The detail is a difference of Gaussians of the target (edges and vessels of 1 to 4 pixels), taken where it
    exceeds five times its own noise; the share is the least-squares coefficient of the residual on it. Noise that was
    added, however strong, is unrelated to the detail and adds nothing; smoothing takes a part of every edge and counts
    in full; a negative share is sharpening. The target's own noise is part of its detail and, where it is removed as it
    should be, of the residual: a perfect restoration reads up to some hundredths (`evaluation.truth` says how much).

    Args:
        residual_hu: (H, W, D).
        target_hu: (H, W, D).
        mask: bool (H, W, D), the body.

    Raises:
        ValueError: when no detail stands out of the noise inside the mask.
    """
    products = squares = 0.0
    for k in range(target_hu.shape[2]):
        detail = _band(target_hu[:, :, k])
        inside = mask[:, :, k]
        if not inside.any():
            continue
        noise = np.quantile(np.abs(detail[inside]), QUIET_SHARE) / _GAUSSIAN_QUANTILE
        chosen = inside & (np.abs(detail) > NOISE_FACTOR * noise)
        products += float(np.sum(_band(residual_hu[:, :, k])[chosen] * detail[chosen], dtype=np.float64))
        squares += float(np.sum(detail[chosen] ** 2, dtype=np.float64))
    if squares == 0:
        raise ValueError("no detail of the target stands out of its noise: there is no structure to look for")
    return products / squares


def _band(slice_hu: np.ndarray) -> np.ndarray:
    image = np.asarray(slice_hu, np.float32)
    return ndimage.gaussian_filter(image, FINE_PIXELS) - ndimage.gaussian_filter(image, COARSE_PIXELS)
