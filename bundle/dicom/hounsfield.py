"""Stored values to Hounsfield units, slice by slice, in the type that is asked for."""

import numpy as np
from pydicom.dataset import Dataset

from bundle.dicom.elements import Unusable, decimals, text

MAX_EXACT_FLOAT32 = 1 << 24


def rescale(header: Dataset) -> tuple[float, float]:
    """Rescale Slope and Intercept that make HU of stored values (PS3.3 C.11.1).

    Raises:
        Unusable: when they are missing, or the result would not be HU.
    """
    if "ModalityLUTSequence" in header:
        raise Unusable("values go through a Modality LUT, not RescaleSlope and RescaleIntercept")
    slope = decimals(header, "RescaleSlope", count=1)[0]
    intercept = decimals(header, "RescaleIntercept", count=1)[0]
    if slope == 0:
        raise Unusable("RescaleSlope is 0")
    kind = text(header, "RescaleType").upper()
    if kind and kind != "HU" and not kind.startswith("HOUN"):
        raise Unusable("RescaleType is not HU: the values are no Hounsfield units")
    return slope, intercept


def fill_hu(out: np.ndarray, stored: np.ndarray, *, slope: float, intercept: float) -> None:
    """Write HU of stored values into `out`, of the same shape.

    Computed in float64, or, with the same result, in `out`'s own type where that holds every step exactly.

    Raises:
        ValueError: when `out` is of an integer type that does not hold every HU exactly.
    """
    whole = slope.is_integer() and intercept.is_integer()
    if out.dtype.kind in "iu":
        low, high = hu_range(stored, slope=slope, intercept=intercept)
        limits = np.iinfo(out.dtype)
        if not whole or low < limits.min or high > limits.max:
            raise ValueError(f"{out.dtype} does not hold every HU of this volume exactly")
        if slope != 1 or abs(intercept) > limits.max or limits.min == 0:
            out[...] = stored.astype(np.int64) * int(slope) + int(intercept)
        else:  # words wrap around on the way and come out right, because the result fits
            np.add(stored.astype(out.dtype), out.dtype.type(intercept), out=out)
    elif (
        stored.itemsize == 2
        and out.dtype.itemsize >= 4
        and whole
        and abs(slope) * (1 << 16) + abs(intercept) < MAX_EXACT_FLOAT32
    ):
        np.multiply(stored, out.dtype.type(slope), out=out, dtype=out.dtype)
        out += out.dtype.type(intercept)
    else:
        out[...] = stored * slope + intercept


def hu_range(stored: np.ndarray, *, slope: float, intercept: float) -> tuple[float, float]:
    """Lowest and highest HU of stored values."""
    ends = sorted(float(end) * slope + intercept for end in (stored.min(), stored.max()))
    return ends[0], ends[1]
