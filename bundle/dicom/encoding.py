"""HU back to stored values: nothing clipped, nothing touched that was not restored."""

from dataclasses import dataclass, replace

import numpy as np

from bundle.dicom.pixels import PixelLayout, padding_range, pixel_layout
from bundle.dicom.volume import Volume
from bundle.errors import BundleError

_WORDS = 1 << 16


@dataclass(frozen=True, eq=False)
class EncodedSlice:
    """What the Image Pixel and CT Image modules of one output slice need.

    Attributes:
        stored: stored values, (rows, columns), int16 or uint16.
        layout: BitsStored, HighBit, PixelRepresentation that hold them.
        intercept: Rescale Intercept; the slope is the source's.
        padding: Pixel Padding Value and Range Limit in `stored`'s terms; None where the source has none.
    """

    stored: np.ndarray
    layout: PixelLayout
    intercept: float
    padding: tuple[int, int | None] | None


def encode(volume: Volume, restored_hu: np.ndarray) -> list[EncodedSlice]:
    """Stored values of a restored volume, slice by slice.

    Voxels equal to the source keep their stored value; others are rounded half to even on the source's rescale.
    The source's bits are kept where they hold every value, else widened to 16, else signed or unsigned as fits,
    else the intercept is moved; last, padding gets a new value.

    Args:
        volume: the source.
        restored_hu: (H, W, D), any float type.

    Raises:
        BundleError: when a value is not finite, or the values span more than 16 bits.
    """
    if restored_hu.shape != volume.shape:
        raise ValueError(f"restored_hu has shape {restored_hu.shape}, the source {volume.shape}")
    depth = volume.shape[2]
    # Twice through the slices, so that the wide integers of one slice only are held at a time.
    ranges = [_range(_stored(volume, restored_hu, k)) for k in range(depth)]
    padding = [padding_range(header) for header in volume.headers]
    floor = _padding_floor(volume, restored_hu, ranges)
    if floor is not None:
        ranges = [(floor, min(high, floor + _WORDS - 1)) for _, high in ranges]
        padding = [None if old is None else (floor, None) for old in padding]
    layouts, offset = _layouts([pixel_layout(header) for header in volume.headers], ranges)
    encoded = []
    for k in range(depth):
        values = _stored(volume, restored_hu, k)
        if floor is not None and volume.padding_mask is not None:
            values[volume.padding_mask[:, :, k]] = floor
        encoded.append(
            EncodedSlice(
                stored=(values - offset).T.astype(layouts[k].dtype),
                layout=layouts[k],
                intercept=float(volume.intercept[k] + volume.slope[k] * offset),
                padding=_moved_padding(padding[k], offset, layouts[k]),
            )
        )
    return encoded


def _padding_floor(volume: Volume, restored_hu: np.ndarray, ranges: list[tuple[int, int]]) -> int | None:
    """A stored value just below all tissue for padding, where 16 bits do not reach from tissue to the old one.

    Seen where -2000 stands as 63536 in unsigned words: one voxel below the source's lowest HU, and the span
    is more than a word. Padding is no HU, so it is what gives way. None where all fits as it is.
    """
    if max(high for _, high in ranges) - min(low for low, _ in ranges) < _WORDS or volume.padding_mask is None:
        return None
    tissue = [
        _range(_stored(volume, restored_hu, k)[~mask])
        for k in range(volume.shape[2])
        if not (mask := volume.padding_mask[:, :, k]).all()
    ]
    if not tissue:
        return None
    low, high = min(low for low, _ in tissue), max(high for _, high in tissue)
    return low - 1 if high - low + 1 < _WORDS else None


def _layouts(source: list[PixelLayout], ranges: list[tuple[int, int]]) -> tuple[list[PixelLayout], int]:
    """The nearest layouts to the source's that hold every slice's range, and what is taken off stored values."""
    for candidate in (source, [_to_16_bits(layout, signed=layout.signed) for layout in source]):
        if all(layout.allocated == 16 and _fits(r, layout) for r, layout in zip(ranges, candidate, strict=True)):
            return candidate, 0
    low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
    signed = -(1 << 15) <= low and high < 1 << 15
    offset = 0 if signed or (low >= 0 and high < 1 << 16) else low
    if high - offset >= 1 << 16:
        raise BundleError("restored values span more than 16 bits hold at the source's RescaleSlope")
    return [_to_16_bits(layout, signed=signed) for layout in source], offset


def _range(values: np.ndarray) -> tuple[int, int]:
    return int(values.min()), int(values.max())


def _stored(volume: Volume, restored_hu: np.ndarray, k: int) -> np.ndarray:
    """Stored values (H, W) of slice k, int64, before they are fitted into bits."""
    source = volume.stored[:, :, k].astype(np.int64)
    hu = restored_hu[:, :, k]
    changed = hu != volume.array[:, :, k]
    if not np.isfinite(hu).all():
        raise BundleError(f"restored values of slice {k} are not all finite")
    exact = (hu.astype(np.float64) - volume.intercept[k]) / volume.slope[k]
    if np.abs(exact).max() > 1 << 40:
        raise BundleError(f"restored values of slice {k} are beyond all reason")
    values = np.where(changed, np.rint(exact).astype(np.int64), source)  # rint rounds half to even
    padding = padding_range(volume.headers[k])
    if padding is not None and volume.padding_mask is not None:
        # Tissue must not turn into padding by chance: step out of the range at its nearer end.
        low, high = sorted((padding[0], padding[0] if padding[1] is None else padding[1]))
        hit = changed & ~volume.padding_mask[:, :, k] & (values >= low) & (values <= high)
        values[hit] = np.where(values[hit] - low < high - values[hit], low - 1, high + 1)
    return values


def _fits(values: tuple[int, int], layout: PixelLayout) -> bool:
    low = -(1 << (layout.stored - 1)) if layout.signed else 0
    return low <= values[0] and values[1] < low + (1 << layout.stored)


def _to_16_bits(layout: PixelLayout, *, signed: bool) -> PixelLayout:
    return replace(layout, allocated=16, stored=16, high_bit=15, signed=signed)


def _moved_padding(
    padding: tuple[int, int | None] | None, offset: int, layout: PixelLayout
) -> tuple[int, int | None] | None:
    """Padding in the output's terms; None when the output cannot hold it (then no voxel has it either)."""
    if padding is None:
        return None
    low = -(1 << 15) if layout.signed else 0
    moved = [None if value is None else value - offset for value in padding]
    if any(value is not None and not low <= value < low + (1 << 16) for value in moved):
        return None
    assert moved[0] is not None
    return moved[0], moved[1]
