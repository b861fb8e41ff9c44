"""Noise: how much of it a slice has, and how it is spread over spatial frequencies. numpy only."""

import numpy as np

FLOOR_HU = 0.1  # stored values are whole HU: less noise than this is not there, and ratios stay finite
STEP = 2  # pixels between the taps of the second difference
CELL = 4  # pixels of a side of the cells in which smoothness is judged
SOFT_HU = (-200.0, 300.0)  # fat to enhanced organs: neither lung, whose vessels look like noise, nor bone
SMOOTH_FRACTION = 0.5
MIN_CELLS = 64
GAUSSIAN_MAD = 1.482602218505602  # standard deviation of a Gaussian over its median absolute value


def noise_level(volume_hu: np.ndarray) -> np.ndarray:
    """Noise standard deviation of every slice in HU, float32 (D,), never NaN and at least 0.1.

    A second difference along rows and columns (Immerkaer, CVIU 64, 1996), with taps two pixels apart, cancels
    anatomy that is locally linear and keeps the standard deviation of white noise. Its median absolute value is
    taken over the smoother half of soft tissue, smoothness being judged on 4 x 4 means, which hardly know the
    noise measured; of a slice without soft tissue, over the smoother half of all of it.

    For white noise it is the standard deviation. CT noise is correlated, and what the filter passes (a band
    around half the Nyquist frequency) depends on the kernel: there it is a consistent relative measure, in
    proportion to the noise and adding in quadrature, of 0.6 to 1 times the standard deviation for the kernel of
    the low-dose model at pixels of 0.5 to 1 mm.

    Args:
        volume_hu: whole slices (H, W, D) HU.
    """
    depth = volume_hu.shape[2]
    levels = [_slice_level(np.ascontiguousarray(volume_hu[:, :, k], np.float32)) for k in range(depth)]
    return np.array(levels, np.float32)


def nps_radial(
    volume_hu: np.ndarray,
    *,
    spacing_mm: tuple[float, ...],
    centres: list[tuple[int, int, int]] | None = None,
    size: int = 64,
) -> tuple[np.ndarray, np.ndarray]:
    """Radial noise power spectrum over square regions (AAPM TG-233, 2019; ICRU 87, 2012).

    NPS(f) = dx dy / size^2 times the mean of |DFT(region - quadratic trend)|^2, averaged over rings of one
    frequency step each. Summed over the plane of frequencies it is the variance.

    Args:
        volume_hu: (H, W, D) HU.
        spacing_mm: distance of rows and of columns (what follows is ignored).
        centres: (row, column, slice) of the regions; None is the middle of every slice.
        size: side of a region in pixels.

    Returns:
        Frequencies in 1/mm, without 0 (the trend took it), and the spectrum there in HU^2 mm^2, both float64.

    Raises:
        ValueError: when there is no region or one leaves the volume.
    """
    rows, columns, depth = volume_hu.shape
    if centres is None:
        centres = [(rows // 2, columns // 2, k) for k in range(depth)]
    if not centres:
        raise ValueError("centres is empty: there is nothing to average over")
    power = np.zeros((size, size))
    trend = quadratic_basis(size)
    for row, column, k in centres:
        top, left = row - size // 2, column - size // 2
        if not (0 <= top <= rows - size and 0 <= left <= columns - size and 0 <= k < depth):
            raise ValueError(f"a region of {size} pixels around {(row, column, k)} leaves the volume")
        region = volume_hu[top : top + size, left : left + size, k].astype(np.float64).ravel()
        region = region - trend @ (trend.T @ region)
        power += np.abs(np.fft.fft2(region.reshape(size, size))) ** 2
    power *= spacing_mm[0] * spacing_mm[1] / (size * size * len(centres))
    return _rings(power, spacing_mm=(spacing_mm[0], spacing_mm[1]))


def nps_distance(nps: np.ndarray, reference: np.ndarray) -> float:
    """Mean |log10(nps / reference)| over frequencies: 0 is the same strength and texture, 0.3 a factor of two.

    Raises:
        ValueError: when the two have different or no frequencies.
    """
    if nps.shape != reference.shape or nps.size == 0:
        raise ValueError(f"nps and reference must have the same frequencies, not {nps.shape} and {reference.shape}")
    tiny = np.finfo(np.float64).tiny
    ratio = np.log10(np.maximum(nps, tiny)) - np.log10(np.maximum(reference, tiny))
    return float(np.mean(np.abs(ratio)))


def _slice_level(slice_hu: np.ndarray) -> float:
    rows, columns = ((size - 2 * STEP) // CELL * CELL for size in slice_hu.shape)
    if rows <= 0 or columns <= 0:
        return FLOOR_HU
    along_rows = slice_hu[STEP:-STEP] - 0.5 * (slice_hu[: -2 * STEP] + slice_hu[2 * STEP :])
    detail = along_rows[:, STEP:-STEP] - 0.5 * (along_rows[:, : -2 * STEP] + along_rows[:, 2 * STEP :])
    detail *= 2 / 3  # the squares of (-1/2, 1, -1/2) x (-1/2, 1, -1/2) add up to 9/4
    inner = slice_hu[STEP : STEP + rows, STEP : STEP + columns]
    chosen = _smooth_cells(_cells(inner).mean(axis=(1, 3)))
    if not chosen.any():  # not a number anywhere that counts
        return FLOOR_HU
    values = np.abs(_cells(detail[:rows, :columns]).transpose(0, 2, 1, 3)[chosen])
    level = GAUSSIAN_MAD * float(np.median(values))
    return max(level, FLOOR_HU) if np.isfinite(level) else FLOOR_HU


def _cells(image: np.ndarray) -> np.ndarray:
    """View (H, W) as (H / CELL, CELL, W / CELL, CELL)."""
    return image.reshape(image.shape[0] // CELL, CELL, image.shape[1] // CELL, CELL)


def _smooth_cells(means: np.ndarray) -> np.ndarray:
    """Choose, bool of the shape of `means`, the smoother half of soft tissue, or of everything without any."""
    step = np.zeros_like(means)
    for axis in (0, 1):
        change = np.abs(np.diff(means, axis=axis))
        before = [(0, 0), (0, 0)]
        after = [(0, 0), (0, 0)]
        before[axis], after[axis] = (1, 0), (0, 1)
        step = np.maximum(step, np.maximum(np.pad(change, before), np.pad(change, after)))
    soft = (means > SOFT_HU[0]) & (means < SOFT_HU[1])
    if soft.sum() < MIN_CELLS:
        soft = np.ones_like(soft)
    return soft & (step <= np.quantile(step[soft], SMOOTH_FRACTION))


def quadratic_basis(size: int) -> np.ndarray:
    """Orthonormal columns, float64 (size^2, 6), that span polynomials of degree two over a square."""
    x = np.linspace(-1, 1, size)
    rows, columns = (grid.ravel() for grid in np.meshgrid(x, x, indexing="ij"))
    terms = [np.ones(size * size), rows, columns, rows**2, rows * columns, columns**2]
    return np.linalg.qr(np.stack(terms, axis=1))[0]


def _rings(power: np.ndarray, *, spacing_mm: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Average a power spectrum over rings up to the Nyquist frequency of the larger spacing."""
    size = power.shape[0]
    frequency = np.hypot(*np.meshgrid(*(np.fft.fftfreq(size, d) for d in spacing_mm), indexing="ij"))
    width = 1 / (size * min(spacing_mm))
    ring = np.rint(frequency / width).astype(int).ravel()
    last = int(np.floor(0.5 / max(spacing_mm) / width))
    count = np.bincount(ring, minlength=last + 1)[1 : last + 1]
    total = np.bincount(ring, power.ravel(), minlength=last + 1)[1 : last + 1]
    return np.arange(1, last + 1) * width, total / count
