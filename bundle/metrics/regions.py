"""Homogeneous squares of soft tissue: where noise can be measured apart from anatomy. Volumes are HU (H, W, D)."""

import numpy as np
from scipy import ndimage

from bundle.metrics.noise import quadratic_basis

SIZE = 32  # pixels of a side: 15 to 30 mm
PER_SLICE = 8
SMOOTHING_PIXELS = 3.0  # what is left of a slice after it is anatomy rather than noise
_COVERED = 0.95


def homogeneous_regions(
    target_hu: np.ndarray, soft: np.ndarray, *, size: int = SIZE, per_slice: int = PER_SLICE
) -> list[tuple[int, int, int]]:
    """Centres (row, column, slice) of the flattest squares of soft tissue, at most `per_slice` in each slice.

    Squares on a grid of half their size that are soft tissue to 95 %; the flattest are those whose smoothed values
    keep nearest to a quadratic trend. They may overlap by half. Choose them on the target, measure everywhere.

    Args:
        target_hu: (H, W, D).
        soft: bool (H, W, D), see `masks.tissue_masks`.
        size: pixels of a side, even.
        per_slice: most squares of a slice.
    """
    centres: list[tuple[int, int, int]] = []
    trend = quadratic_basis(size)
    for k in range(target_hu.shape[2]):
        smooth = ndimage.gaussian_filter(np.asarray(target_hu[:, :, k], np.float32), SMOOTHING_PIXELS)
        found = []
        for row, column in _grid(target_hu.shape[:2], size):
            square = slice(row, row + size), slice(column, column + size)
            if np.mean(soft[:, :, k][square]) >= _COVERED:
                found.append((_deviation(smooth[square], trend), (row + size // 2, column + size // 2, k)))
        centres += [centre for _, centre in sorted(found)[:per_slice]]
    return centres


def noise_magnitude(volume_hu: np.ndarray, centres: list[tuple[int, int, int]], *, size: int = SIZE) -> float:
    """Standard deviation in HU over the squares, each without its quadratic trend; root of the mean variance.

    Raises:
        ValueError: when there is no square.
    """
    if not centres:
        raise ValueError("centres is empty: there is nothing to average over")
    trend = quadratic_basis(size)
    half = size // 2
    variances = [
        _deviation(volume_hu[row - half : row + half, column - half : column + half, k], trend) ** 2
        for row, column, k in centres
    ]
    return float(np.sqrt(np.mean(variances)))


def _deviation(square: np.ndarray, trend: np.ndarray) -> float:
    values = square.astype(np.float64).ravel()
    values = values - trend @ (trend.T @ values)
    return float(np.sqrt(np.sum(values**2) / (values.size - trend.shape[1])))


def _grid(shape: tuple[int, ...], size: int) -> list[tuple[int, int]]:
    step = size // 2
    return [
        (row, column) for row in range(0, shape[0] - size + 1, step) for column in range(0, shape[1] - size + 1, step)
    ]
