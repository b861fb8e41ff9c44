"""The one type a CT volume has: exact HU, geometry, the stored values and the headers they came from."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from bundle.dicom.geometry import grid_spacing_mm

# DICOM's patient axes are left-posterior-superior (PS3.3 C.7.6.2.1.1), NIfTI's and MONAI's right-anterior-superior.
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class SliceOrigins:
    """Which true slices each slice of a regular grid comes from.

    Slice k is (1 - weight[k]) * true slice below[k] + weight[k] * true slice above[k]; a slice that is one true
    slice as it was has below == above and weight 0.

    Attributes:
        below: number of the true slice, int, (D,).
        above: the same; at most one higher.
        weight: share of `above`, 0 to 1, (D,).
        exact: bool, (D,): the slice lies where its true slice was taken. At the ends of an irregular series a slice
            may hold a true slice's values up to half a spacing away.
    """

    below: np.ndarray
    above: np.ndarray
    weight: np.ndarray
    exact: np.ndarray

    def __len__(self) -> int:
        return len(self.below)

    def of(self, k: int) -> tuple[int, ...]:
        """Numbers of the one or two true slices that slice k comes from."""
        return tuple(dict.fromkeys((int(self.below[k]), int(self.above[k]))))

    def nearest(self, k: int) -> int:
        """Number of the true slice with the larger share in slice k."""
        return int(self.above[k] if self.weight[k] > 0.5 else self.below[k])


@dataclass(frozen=True, eq=False)
class Volume:
    """A CT series as arrays indexed [i, j, k]: i along a row of pixels, j down the column, k = slice.

    Immutable: the arrays cannot be written to and a copy is the volume itself, because MONAI deep-copies the
    meta data of every tensor at every transform.

    Attributes:
        array: HU, float32, (H, W, D).
        affine: (i, j, k, 1) -> LPS mm, float64, (4, 4); sheared for a tilted gantry, kept exactly.
        headers: one per slice in k order, without pixel data and private elements.
        stored: stored values (PS3.3 C.7.6.3), integer, (H, W, D).
        slope: Rescale Slope per slice, float64, (D,).
        intercept: Rescale Intercept per slice, float64, (D,).
        key: the series key: 16 hex digits that identify the series without naming it.
        padding_mask: bool, (H, W, D): where the scanner stored Pixel Padding Value; None without such an element.
        origins: for a series that was resampled by true positions, where its slices come from; else None.
        true_headers: of the slices that `origins` numbers; () without.
    """

    array: np.ndarray
    affine: np.ndarray
    headers: tuple[Dataset, ...]
    stored: np.ndarray
    slope: np.ndarray
    intercept: np.ndarray
    key: str
    padding_mask: np.ndarray | None = None
    origins: SliceOrigins | None = None
    true_headers: tuple[Dataset, ...] = ()

    def __post_init__(self) -> None:
        assert self.array.dtype == np.float32 and self.array.ndim == 3, "array is float32 (H, W, D)"
        assert self.stored.shape == self.array.shape, "stored and array have one shape"
        assert self.origins is None or len(self.origins) == self.array.shape[2], "origins are per slice"
        assert len(self.headers) == self.array.shape[2] == len(self.slope) == len(self.intercept), "one per slice"
        for name in ("array", "affine", "stored", "slope", "intercept", "padding_mask"):
            value = getattr(self, name)
            if value is not None:
                view = value.view()
                view.flags.writeable = False
                object.__setattr__(self, name, view)

    def __copy__(self) -> "Volume":
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "Volume":
        return self

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.shape))
        return f"Volume({self.key}, {shape}, {' x '.join(f'{s:.4g}' for s in self.spacing_mm)} mm)"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, D): voxels along i, j and k."""
        height, width, depth = self.array.shape
        return height, width, depth

    @property
    def resampled(self) -> bool:
        """Whether slices were interpolated between true ones, because some were missing or unevenly spaced."""
        return self.origins is not None

    @property
    def source_headers(self) -> tuple[Dataset, ...]:
        """Headers of the slices that were really there."""
        return self.true_headers if self.resampled else self.headers

    def sources(self, k: int) -> tuple[int, ...]:
        """Numbers, in `source_headers`, of the slices that slice k comes from."""
        return (k,) if self.origins is None else self.origins.of(k)

    def is_true_slice(self, k: int) -> bool:
        """Whether slice k was really there, where it is."""
        return self.origins is None or bool(self.origins.exact[k])

    @cached_property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance in mm between neighbours along i and j, and between slice planes along k."""
        return grid_spacing_mm(self.affine)

    @cached_property
    def affine_ras(self) -> np.ndarray:
        """(i, j, k, 1) -> RAS mm, float64, (4, 4)."""
        return LPS_TO_RAS @ self.affine

    @property
    def is_sheared(self) -> bool:
        """Whether slices step aside (tilted gantry), so that no rotation and spacing describe the grid."""
        step = self.affine[:3, 2]
        return bool(np.linalg.norm(step) > self.spacing_mm[2] * (1 + 1e-4))

    @property
    def is_axis_aligned(self) -> bool:
        """Whether every voxel axis lies along a patient axis, within 0.1 degrees."""
        directions = self.affine[:3, :3] / np.linalg.norm(self.affine[:3, :3], axis=0)
        return bool((np.abs(directions).max(axis=0) > np.cos(np.radians(0.1))).all())
