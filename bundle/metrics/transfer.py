"""Task transfer function (TTF): how sharply a method renders a rod of a phantom (AAPM TG-233, 2019)."""

import numpy as np

BIN_MM = 0.1


def task_transfer(
    image_hu: np.ndarray, *, centre: tuple[float, float], radius_mm: float, spacing_mm: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """TTF of a round rod: Fourier transform of the derivative of its radial edge, 1 at frequency 0.

    Args:
        image_hu: (H, W) with little noise: the mean of many slices.
        centre: row and column of the rod in pixels.
        radius_mm: of the rod; the edge is read from nearly 0 to twice of it.
        spacing_mm: distance of rows and of columns.

    Returns:
        Frequencies in 1/mm and the TTF there.

    Raises:
        ValueError: when there is no contrast between rod and background.
    """
    rows, columns = np.indices(image_hu.shape)
    distance = np.hypot((rows - centre[0]) * spacing_mm[0], (columns - centre[1]) * spacing_mm[1]) - radius_mm
    reach = 0.9 * radius_mm
    near = np.abs(distance) < reach
    bins = np.floor((distance[near] + reach) / BIN_MM).astype(int)
    count = np.bincount(bins)
    sums = np.bincount(bins, image_hu[near])
    position = (np.arange(len(count)) + 0.5) * BIN_MM - reach
    filled = count > 0
    edge = np.interp(position, position[filled], sums[filled] / count[filled])
    spread = np.diff(edge) * np.hanning(len(edge) - 1)
    response = np.abs(np.fft.rfft(spread, n=4096))
    if response[0] < 1e-6:
        raise ValueError("the rod has no contrast: there is no edge to follow")
    return np.fft.rfftfreq(4096, BIN_MM), response / response[0]


def frequency_at(frequencies: np.ndarray, transfer: np.ndarray, level: float) -> float:
    """Frequency where `transfer` first falls to `level`, linearly interpolated."""
    below = np.flatnonzero(transfer <= level)
    if not len(below):
        return float(frequencies[-1])
    i = int(below[0])
    if i == 0:
        return float(frequencies[0])
    part = (transfer[i - 1] - level) / (transfer[i - 1] - transfer[i])
    return float(frequencies[i - 1] + part * (frequencies[i] - frequencies[i - 1]))
