"""How stored values are fitted into 16-bit words: bits, sign, and what is taken off them or divided out.

In this order, the first that holds every value: the source's own layout; 16 bits; the other sign; one intercept for
the series; an intercept of its own for each slice; for a slice that is still too wide a coarser slope, if every
untouched voxel lies exactly on it. Else the series is refused: to clip a value, or to move one that the method did
not touch, is no way out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from bundle.dicom.layouts import PixelLayout
from bundle.errors import BundleError

WORDS = 1 << 16


@dataclass(frozen=True)
class Fit:
    """How one slice's stored values become words: (value - offset) / factor, in `layout`."""

    layout: PixelLayout
    offset: int = 0
    factor: int = 1


def common_fits(source: Sequence[PixelLayout], ranges: Sequence[tuple[int, int]]) -> list[Fit] | None:
    """Fits of all slices with one offset for all and the source's slope; None when the span is more than a word.

    Args:
        source: layouts of the source's slices.
        ranges: lowest and highest stored value of each slice.
    """
    for candidate in (list(source), [_to_16_bits(layout, signed=layout.signed) for layout in source]):
        if all(layout.allocated == 16 and _holds(layout, r) for r, layout in zip(ranges, candidate, strict=True)):
            return [Fit(layout) for layout in candidate]
    low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
    if high - low >= WORDS:
        return None
    signed = -(1 << 15) <= low and high < 1 << 15
    offset = 0 if signed or (low >= 0 and high < WORDS) else low
    return [Fit(_to_16_bits(layout, signed=signed), offset) for layout in source]


def own_fit(source: PixelLayout, values: np.ndarray, *, touched: np.ndarray, k: int) -> Fit:
    """Fit of slice k alone, in unsigned words.

    Args:
        source: the slice's layout in the source.
        values: stored values at the source's slope, int64.
        touched: bool, as `values`: which the method changed and may be rounded to a coarser slope.
        k: for the message.

    Raises:
        BundleError: when no slope holds both the span and every untouched value.
    """
    layout = _to_16_bits(source, signed=False)
    low, high = int(values.min()), int(values.max())
    if high - low < WORDS:
        return Fit(layout, 0 if low >= 0 and high < WORDS else low)
    fixed = values[~touched]
    needed = -((low - high) // (WORDS - 2))  # two words to spare: for rounding, and for a first word below all
    base = int(fixed[0]) if fixed.size else low
    common = int(np.gcd.reduce(np.abs(fixed - base))) if fixed.size else 0
    if common == 0:  # at most one value is fixed: any slope will do
        factor: int | None = needed
    else:
        factor = next((n for n in range(needed, min(common, WORDS) + 1) if common % n == 0), None)
    if factor is None:
        raise BundleError(
            f"restored values of slice {k} span {high - low + 1} stored values, more than 16 bits hold, and a coarser "
            "RescaleSlope would change untouched voxels",
            hint="restore with a lower strength",
        )
    return Fit(layout, base - factor * (-((low - base) // factor)), factor)


def _holds(layout: PixelLayout, values: tuple[int, int]) -> bool:
    low = -(1 << (layout.stored - 1)) if layout.signed else 0
    return low <= values[0] and values[1] < low + (1 << layout.stored)


def _to_16_bits(layout: PixelLayout, *, signed: bool) -> PixelLayout:
    return replace(layout, allocated=16, stored=16, high_bit=15, signed=signed)
