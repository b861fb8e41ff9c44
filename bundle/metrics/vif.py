"""Visual information fidelity in the pixel domain (Sheikh and Bovik, IEEE Trans. Image Process. 15, 2006)."""

import numpy as np
from scipy import ndimage

from bundle.metrics.image import require_same_shape

SCALES = 4
MIN_SIZE = 41  # what the filters of four scales leave at least one pixel of
_EPSILON = 1e-10


def vif(reference: np.ndarray, image: np.ndarray, *, noise_variance: float = 2.0) -> float:
    """Information about `reference` that `image` keeps, divided by what `reference` holds; 1 for equal images.

    The pixel-domain variant of the authors (vifp): four scales, Gaussian windows of 17, 9, 5 and 3 pixels with a
    fifth of that as sigma, valid regions only. It is not symmetric: the reference comes first.

    Args:
        reference: (H, W).
        image: (H, W).
        noise_variance: of the eye's channel, in squared units of the images.

    Returns:
        0 or more; 1 also where the reference is constant and so holds nothing.

    Raises:
        ValueError: when shapes differ or are below 41 x 41.
    """
    require_same_shape(reference, image)
    if reference.ndim != 2 or min(reference.shape) < MIN_SIZE:
        raise ValueError(f"images must be (H, W) of at least {MIN_SIZE} x {MIN_SIZE}, not {reference.shape}")
    a, b = np.asarray(reference, np.float64), np.asarray(image, np.float64)
    kept = held = 0.0
    for scale in range(SCALES):
        kernel = _window(2 ** (SCALES - scale) + 1)
        if scale:
            a, b = (_filter(x, kernel)[::2, ::2] for x in (a, b))
        kept_here, held_here = _information(a, b, kernel, noise_variance)
        kept, held = kept + kept_here, held + held_here
    return float(kept / held) if held > 0 else 1.0


def _information(a: np.ndarray, b: np.ndarray, kernel: np.ndarray, noise_variance: float) -> tuple[float, float]:
    mean_a, mean_b = _filter(a, kernel), _filter(b, kernel)
    var_a = np.maximum(_filter(a * a, kernel) - mean_a**2, 0)
    var_b = np.maximum(_filter(b * b, kernel) - mean_b**2, 0)
    gain = (_filter(a * b, kernel) - mean_a * mean_b) / (var_a + _EPSILON)
    rest = var_b - gain * (_filter(a * b, kernel) - mean_a * mean_b)
    # The four cases of the authors' program: nothing to explain, nothing there, inverted, rounded below zero.
    flat_a = var_a < _EPSILON
    gain[flat_a], rest[flat_a], var_a[flat_a] = 0, var_b[flat_a], 0
    flat_b = var_b < _EPSILON
    gain[flat_b], rest[flat_b] = 0, 0
    inverted = gain < 0
    rest[inverted], gain[inverted] = var_b[inverted], 0
    rest = np.maximum(rest, _EPSILON)
    kept = np.log10(1 + gain**2 * var_a / (rest + noise_variance)).sum()
    return float(kept), float(np.log10(1 + var_a / noise_variance).sum())


def _window(size: int) -> np.ndarray:
    x = np.arange(size) - size // 2
    kernel = np.exp(-(x**2) / (2 * (size / 5) ** 2))
    return kernel / kernel.sum()


def _filter(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Separable correlation, valid region."""
    edge = len(kernel) // 2
    inner = slice(edge, -edge)
    return ndimage.correlate1d(ndimage.correlate1d(image, kernel, axis=0)[inner], kernel, axis=1)[:, inner]
