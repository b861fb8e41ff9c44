"""HU back to stored values: nothing clipped, nothing touched that was not restored."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bundle.dicom.derived_header import decimal_string
from bundle.dicom.layouts import PixelLayout, padding_range, pixel_layout
from bundle.dicom.volume import Volume
from bundle.dicom.words import WORDS, Fit, common_fits, own_fit
from bundle.errors import BundleError


@dataclass(frozen=True, eq=False)
class EncodedSlice:
    """What the Image Pixel and CT Image modules of one output slice need.

    Attributes:
        stored: stored values, (rows, columns), int16 or uint16.
        layout: BitsStored, HighBit, PixelRepresentation that hold them.
        slope: Rescale Slope; the source's, but where only a coarser one holds all values.
        intercept: Rescale Intercept.
        padding: Pixel Padding Value and Range Limit in `stored`'s terms; None where the source has none.
    """

    stored: np.ndarray
    layout: PixelLayout
    slope: float
    intercept: float
    padding: tuple[int, int | None] | None


class EncodedSeries:
    """The slices of an output series, each made when it is asked for: none is kept. Made by `encode`."""

    def __init__(
        self,
        volume: Volume,
        restored_hu: np.ndarray,
        *,
        padding: Sequence[tuple[int, int | None] | None],
        floor: int | None,
        layouts: Sequence[PixelLayout],
        fits: Sequence[Fit] | None,
    ) -> None:
        self._volume, self._restored_hu = volume, restored_hu
        self._padding, self._floor, self._layouts, self._fits = padding, floor, layouts, fits

    def __len__(self) -> int:
        return self._volume.shape[2]

    def __iter__(self) -> Iterator[EncodedSlice]:
        return (self[k] for k in range(len(self)))

    def __getitem__(self, k: int) -> EncodedSlice:
        volume = self._volume
        values = _stored(volume, self._restored_hu, k)
        if self._floor is not None:
            values[volume.slice_padding(k)] = self._floor
        if self._fits is not None:
            fit = self._fits[k]
        else:
            touched = self._restored_hu[:, :, k] != volume.slice_hu(k)
            fit = own_fit(self._layouts[k], values, touched=touched, k=k)
        image = EncodedSlice(
            stored=np.rint((values - fit.offset) / fit.factor).T.astype(fit.layout.dtype),
            layout=fit.layout,
            slope=float(volume.slope[k] * fit.factor),
            intercept=float(volume.intercept[k] + volume.slope[k] * fit.offset),
            padding=_moved_padding(self._padding[k], fit),
        )
        if self._fits is None:
            _check_untouched(image, volume, k, touched)
        return image


def encode(volume: Volume, restored_hu: np.ndarray) -> EncodedSeries:
    """Stored values of a restored volume, slice by slice.

    Voxels equal to the source keep their stored value; others are rounded half to even on the source's rescale.
    The source's bits are kept where they hold every value, else `bundle.dicom.words` finds others; padding is no HU
    and gives way first.

    Args:
        volume: the source.
        restored_hu: (H, W, D), any float type.

    Raises:
        BundleError: when a value is not finite, or 16 bits hold the values at no slope that keeps the untouched.
    """
    if restored_hu.shape != volume.shape:
        raise ValueError(f"restored_hu has shape {restored_hu.shape}, the source {volume.shape}")
    depth = volume.shape[2]
    # Once through all slices for what they have in common; each is made anew when it is asked for.
    ranges = [_range(_stored(volume, restored_hu, k)) for k in range(depth)]
    padding = [padding_range(header) for header in volume.headers]
    floor = _padding_floor(volume, restored_hu, ranges)
    if floor is not None:
        ranges = [(floor, min(high, floor + WORDS - 1)) for _, high in ranges]
        padding = [None if old is None else (floor, None) for old in padding]
    layouts = [pixel_layout(header) for header in volume.headers]
    fits = common_fits(layouts, ranges)
    encoded = EncodedSeries(volume, restored_hu, padding=padding, floor=floor, layouts=layouts, fits=fits)
    if fits is None:
        for _ in encoded:  # a slice that cannot be stored is an error before the first is written
            pass
    return encoded


def _check_untouched(image: EncodedSlice, volume: Volume, k: int, touched: np.ndarray) -> None:
    """Untouched voxels still have their HU at a slope and intercept of 16 characters each."""
    slope, intercept = (float(decimal_string(value)) for value in (image.slope, image.intercept))
    hu = (image.stored.T * slope + intercept).astype(np.float32)
    if not np.array_equal(hu[~touched], volume.slice_hu(k)[~touched]):
        raise BundleError(
            f"restored values of slice {k} fit 16 bits only with a RescaleIntercept that would change untouched voxels",
            hint="restore with a lower strength",
        )


def _padding_floor(volume: Volume, restored_hu: np.ndarray, ranges: list[tuple[int, int]]) -> int | None:
    """A stored value just below all tissue for padding, where 16 bits do not reach from tissue to the old one.

    Seen where -2000 stands as 63536 in unsigned words: one voxel below the source's lowest HU, and the span
    is more than a word. Padding is no HU, so it is what gives way. None where all fits as it is.
    """
    if max(high for _, high in ranges) - min(low for low, _ in ranges) < WORDS or not volume.is_padded:
        return None
    tissue = [
        _range(_stored(volume, restored_hu, k)[~mask])
        for k in range(volume.shape[2])
        if not (mask := volume.slice_padding(k)).all()
    ]
    if not tissue:
        return None
    low, high = min(low for low, _ in tissue), max(high for _, high in tissue)
    return low - 1 if high - low + 1 < WORDS else None


def _range(values: np.ndarray) -> tuple[int, int]:
    return int(values.min()), int(values.max())


def _stored(volume: Volume, restored_hu: np.ndarray, k: int) -> np.ndarray:
    """Stored values (H, W) of slice k, int64, before they are fitted into bits."""
    source = volume.stored[:, :, k].astype(np.int64)
    hu = restored_hu[:, :, k]
    changed = hu != volume.slice_hu(k)
    if not np.isfinite(hu).all():
        raise BundleError(f"restored values of slice {k} are not all finite")
    exact = (hu.astype(np.float64) - volume.intercept[k]) / volume.slope[k]
    if np.abs(exact).max() > 1 << 40:
        raise BundleError(f"restored values of slice {k} are beyond all reason")
    values = np.where(changed, np.rint(exact).astype(np.int64), source)  # rint rounds half to even
    padding = padding_range(volume.headers[k])
    return step_out_of_padding(values, padding, where=changed & ~volume.slice_padding(k))


def step_out_of_padding(values: np.ndarray, padding: tuple[int, int | None] | None, *, where: np.ndarray) -> np.ndarray:
    """Stored values of which none is padding by chance: tissue steps out of the range at its nearer end.

    Args:
        values: stored values, int64.
        padding: Pixel Padding Value and Range Limit; None leaves all as it is.
        where: bool, as `values`: which may be changed.
    """
    if padding is None:
        return values
    low, high = sorted((padding[0], padding[0] if padding[1] is None else padding[1]))
    hit = where & (values >= low) & (values <= high)
    return np.where(hit, np.where(values - low < high - values, low - 1, high + 1), values)


def _moved_padding(padding: tuple[int, int | None] | None, fit: Fit) -> tuple[int, int | None] | None:
    """Padding in the output's terms; None when the output cannot hold it (then no voxel has it either)."""
    if padding is None:
        return None
    low = -(1 << 15) if fit.layout.signed else 0
    moved = []
    for value in padding:
        word, rest = divmod(0 if value is None else value - fit.offset, fit.factor)
        if value is not None and (rest or not low <= word < low + WORDS):
            return None
        moved.append(None if value is None else word)
    assert moved[0] is not None
    return moved[0], moved[1]
