"""How far an image is from another: RMSE, PSNR, SSIM, bias. Arrays are HU, (H, W, D) or (H, W).

A number means little without its window and data range: `clip` first when a clinical window is meant, and give
the window's width as `data_range`.
"""

import numpy as np
from skimage.metrics import structural_similarity

from bundle.units import window_limits

GAUSSIAN_WINDOW = 11  # pixels that sigma 1.5 spans, cut at 3.5 sigma


def clip(a: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    """`a` limited to a window given as (centre, width) in HU; what a viewer set to it can show."""
    lower, upper = window_limits(window)
    return np.clip(a, lower, upper)


def rmse_hu(a: np.ndarray, b: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Root mean square difference in HU over `mask`, or everywhere.

    Raises:
        ValueError: when shapes differ or the mask is empty.
    """
    return float(np.sqrt(np.mean(np.square(_difference(a, b, mask)))))


def psnr(a: np.ndarray, b: np.ndarray, *, data_range: float, mask: np.ndarray | None = None) -> float:
    """Peak signal-to-noise ratio in dB, 20 log10(data_range / RMSE), over `mask`, or everywhere.

    Identical images give float('inf'), which JSON does not know: who writes it down must turn it into null.

    Raises:
        ValueError: when shapes differ, the mask is empty or `data_range` is not positive.
    """
    _require_range(data_range)
    error = rmse_hu(a, b, mask)
    return float("inf") if error == 0 else float(20 * np.log10(data_range / error))


def ssim(a: np.ndarray, b: np.ndarray, *, data_range: float) -> float:
    """Structural similarity (Wang et al., IEEE Trans. Image Process. 13, 2004), the mean over slices.

    As published: Gaussian weights of sigma 1.5, population covariance, K1 = 0.01, K2 = 0.03. Slices are taken
    one by one because their distance differs from that of pixels.

    Raises:
        ValueError: when shapes differ, a slice is smaller than 11 x 11 or `data_range` is not positive.
    """
    _require_range(data_range)
    require_same_shape(a, b)
    a, b = (np.atleast_3d(x).astype(np.float64, copy=False) for x in (a, b))
    require_window(a.shape[:2], GAUSSIAN_WINDOW)
    values = [
        structural_similarity(
            np.ascontiguousarray(a[:, :, k]),
            np.ascontiguousarray(b[:, :, k]),
            data_range=data_range,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for k in range(a.shape[2])
    ]
    return float(np.mean(values))


def bias_hu(a: np.ndarray, b: np.ndarray, mask: np.ndarray) -> float:
    """Mean of a - b in HU over `mask`: what a restoration `a` of `b` adds to or takes from a tissue.

    Raises:
        ValueError: when shapes differ or the mask is empty.
    """
    return float(np.mean(_difference(a, b, mask)))


def _difference(a: np.ndarray, b: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Values of a - b in double precision, restricted to `mask`."""
    require_same_shape(a, b)
    if mask is not None:
        if mask.shape != a.shape:
            raise ValueError(f"mask has shape {mask.shape}, the image {a.shape}")
        if not mask.any():
            raise ValueError("mask is empty: there is nothing to average over")
        a, b = a[mask.astype(bool)], b[mask.astype(bool)]
    return np.asarray(a, np.float64) - np.asarray(b, np.float64)


def require_same_shape(a: np.ndarray, b: np.ndarray) -> None:
    """Raise a ValueError when two arrays cannot be compared voxel by voxel."""
    if a.shape != b.shape:
        raise ValueError(f"a and b must have one shape, not {a.shape} and {b.shape}")


def require_window(shape: tuple[int, ...], size: int) -> None:
    """Raise a ValueError when a slice of this shape (H, W) is smaller than a window of `size` x `size` pixels."""
    if min(shape) < size:
        raise ValueError(f"a slice of {shape[0]} x {shape[1]} is smaller than the window of {size} x {size}")


def _require_range(data_range: float) -> None:
    if not data_range > 0:
        raise ValueError(f"data_range must be above 0, not {data_range}")
