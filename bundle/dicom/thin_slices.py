"""Thin slices from thick ones: a series interpolated onto a finer grid along its slices, for a network to sharpen.

The grid begins at the first slice's centre and ends at the last's or before it, so that nothing is extrapolated.
Between slices it is interpolated linearly, as training for thick slices brings them back onto the thin grid
(`bundle.degrade.slabs`). Slices of the grid that lie where one was taken keep its stored values.
"""

import math
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset

from bundle.dicom.derived_header import decimal_string
from bundle.dicom.elements import Unusable, decimals
from bundle.dicom.geometry import SAME_PLACE_MM, grid_spacing_mm
from bundle.dicom.resample import resample
from bundle.dicom.slice_grid import MAX_GAP_MM, MAX_GROWTH, SliceGrid
from bundle.dicom.volume import SliceOrigins, Volume
from bundle.errors import BundleError
from bundle.pages import Pages, let_go, plain_pages

MAX_SLICES = 4000  # a whole body at 0.5 mm; each slice of 512 x 512 takes 2 MB on disk while it is worked on


@dataclass(frozen=True, kw_only=True)
class ThinSlices:
    """What thin slices are asked for.

    Args:
        slice_spacing_mm: distance of slices; what is as near already stays as it is.
        nominal: whether a network makes thin slices of the interpolated ones, so that their Slice Thickness is
            `slice_spacing_mm`; else it is that of what was interpolated.

    Raises:
        BundleError: when the distance is no positive number.
    """

    slice_spacing_mm: float
    nominal: bool = False

    def __post_init__(self) -> None:
        value = self.slice_spacing_mm
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise BundleError(
                f"slice_spacing_mm must be a positive number of mm, not {value}", hint="--slice_spacing_mm 1"
            )

    def volume(self, volume: Volume, pages: Pages = plain_pages) -> Volume:
        """A series on the thin grid; values are rounded to stored values of the nearest slice, padding stays padding.

        Args:
            volume: the series.
            pages: makes the array for the stored values, in memory or on disk.

        Raises:
            BundleError: when the series has no such grid.
        """
        origins = self.origins(volume.shape[2], volume.spacing_mm[2], resampled=volume.resampled)
        if origins is None:
            return volume
        thin = resample(volume, SliceGrid(self._affine(volume.affine), origins), pages)
        for k, header in enumerate(thin.headers if self.nominal else ()):
            claimed = min(self.slice_spacing_mm, _thickness(volume.headers[origins.nearest(k)]))
            header.SliceThickness = decimal_string(claimed)
        return thin

    def array(self, array: np.ndarray, affine: np.ndarray, pages: Pages = plain_pages) -> tuple[np.ndarray, np.ndarray]:
        """HU (H, W, D), float32, and affine (4, 4) on the thin grid.

        Args:
            array: HU (H, W, D).
            affine: (i, j, k, 1) -> mm.
            pages: makes the array for the thin slices, in memory or on disk.

        Raises:
            BundleError: when the volume has no such grid.
        """
        origins = self.origins(array.shape[2], grid_spacing_mm(affine)[2])
        if origins is None:
            return array, affine
        thin = pages((len(origins), *array.shape[1::-1]), np.float32).transpose(2, 1, 0)
        for k in range(len(origins)):
            below, above, weight = array[:, :, origins.below[k]], array[:, :, origins.above[k]], origins.weight[k]
            thin[:, :, k] = below if weight == 0 else (1 - weight) * below + weight * above
            for part in (below, above, thin[:, :, k]):
                let_go(part)
        return thin, self._affine(affine)

    def count(self, depth: int, spacing_mm: float, *, resampled: bool = False) -> int:
        """How many slices `depth` ones become; arguments and errors as of `origins`."""
        origins = self.origins(depth, spacing_mm, resampled=resampled)
        return depth if origins is None else len(origins)

    def origins(self, depth: int, spacing_mm: float, *, resampled: bool = False) -> SliceOrigins | None:
        """Where the thin slices of `depth` ones come from; None where these are as near as was asked for.

        Args:
            depth: slices of the source.
            spacing_mm: their distance.
            resampled: whether some of these were interpolated already.

        Raises:
            BundleError: when they are nearer already, too far apart to say what lies between, or would be too many.
        """
        wanted = self.slice_spacing_mm
        if resampled:
            raise BundleError("slice_spacing_mm wants even slices: this series has gaps", hint="fetch what is missing")
        if depth < 2:
            raise BundleError("slice_spacing_mm wants a series of two slices or more")
        if wanted > spacing_mm + SAME_PLACE_MM:
            raise BundleError(
                f"slice_spacing_mm {wanted:g} is more than the {spacing_mm:.4g} mm that slices are apart: nothing is "
                "ever dropped",
                hint="leave it out",
            )
        if wanted >= spacing_mm - SAME_PLACE_MM:
            return None
        if spacing_mm > MAX_GAP_MM:
            raise BundleError(f"slices are {spacing_mm:.4g} mm apart: too far to say what lies between")
        count = math.floor(((depth - 1) * spacing_mm + SAME_PLACE_MM) / wanted) + 1
        if count > MAX_SLICES or spacing_mm / wanted > MAX_GROWTH + SAME_PLACE_MM:
            raise BundleError(
                f"slice_spacing_mm {wanted:g} would make {count} slices of {depth}: at most {MAX_GROWTH} for each, and "
                f"{MAX_SLICES} in all, can say more than their source or be held in memory",
                hint=f"--slice_spacing_mm {max(spacing_mm / MAX_GROWTH, (depth - 1) * spacing_mm / MAX_SLICES):.3g}",
            )
        places = np.arange(count) * wanted / spacing_mm
        near = np.rint(places).astype(int)
        exact = np.abs(places - near) * spacing_mm <= SAME_PLACE_MM
        below = np.where(exact, near, np.minimum(np.floor(places).astype(int), depth - 2))
        return SliceOrigins(
            below,
            np.where(exact, near, below + 1),
            np.where(exact, 0.0, places - below),
            exact,
            reason=f"thinner slices than the source's, which are {spacing_mm:.4g} mm apart",
        )

    def _affine(self, affine: np.ndarray) -> np.ndarray:
        thin = np.array(affine, np.float64)
        thin[:3, 2] *= self.slice_spacing_mm / grid_spacing_mm(affine)[2]  # a tilted gantry's step stays tilted
        return thin


def asked_for(slice_spacing_mm: float | None, *, nominal: bool) -> ThinSlices | None:
    """`ThinSlices`, or None where no distance was given."""
    return None if slice_spacing_mm is None else ThinSlices(slice_spacing_mm=slice_spacing_mm, nominal=nominal)


def _thickness(header: Dataset) -> float:
    try:
        return decimals(header, "SliceThickness", count=1)[0]
    except Unusable:
        return math.inf
