"""The one type a CT volume has: exact HU, geometry, the stored values and the headers they came from."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

# DICOM's patient axes are left-posterior-superior (PS3.3 C.7.6.2.1.1), NIfTI's and MONAI's right-anterior-superior.
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


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
    """

    array: np.ndarray
    affine: np.ndarray
    headers: tuple[Dataset, ...]
    stored: np.ndarray
    slope: np.ndarray
    intercept: np.ndarray
    key: str
    padding_mask: np.ndarray | None = None

    def __post_init__(self) -> None:
        assert self.array.dtype == np.float32 and self.array.ndim == 3, "array is float32 (H, W, D)"
        assert self.stored.shape == self.array.shape, "stored and array have one shape"
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

    @cached_property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance in mm between neighbours along i and j, and between slice planes along k.

        The planes' distance is taken along their normal: in a sheared grid the step from slice to slice is longer.
        """
        i, j, k = self.affine[:3, 0], self.affine[:3, 1], self.affine[:3, 2]
        normal = np.cross(i, j)
        return (float(np.linalg.norm(i)), float(np.linalg.norm(j)), float(abs(k @ normal) / np.linalg.norm(normal)))

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
