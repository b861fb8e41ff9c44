"""The one type a CT volume has: stored values, the HU they stand for, geometry, and the headers they came from."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import DTypeLike
from pydicom.dataset import Dataset

from bundle.dicom.geometry import grid_spacing_mm
from bundle.dicom.hounsfield import fill_hu
from bundle.pages import let_go, plain_pages

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
        reason: why slices are not as they were, for Derivation Description.
    """

    below: np.ndarray
    above: np.ndarray
    weight: np.ndarray
    exact: np.ndarray
    reason: str = "gaps or irregular spacing of the source resampled"

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

    What is held is the stored values, exactly; HU and the padding mask are made of them when asked for, anew each
    time, so that a volume takes no more memory than its stored values. Where these lie on disk (`bundle.pages`) it
    takes next to none: each slice is let go of after use.

    Immutable: the arrays cannot be written to and a copy is the volume itself, because MONAI deep-copies the
    meta data of every tensor at every transform.

    Attributes:
        stored: stored values (PS3.3 C.7.6.3), integer, (H, W, D), slices contiguous.
        affine: (i, j, k, 1) -> LPS mm, float64, (4, 4); sheared for a tilted gantry, kept exactly.
        headers: one per slice in k order, without pixel data and private elements.
        slope: Rescale Slope per slice, float64, (D,).
        intercept: Rescale Intercept per slice, float64, (D,).
        key: the series key: 16 hex digits that identify the series without naming it.
        padding: lowest and highest stored value that is Pixel Padding Value per slice, None for a slice without.
        origins: for a series that was resampled along its slices, where they come from; else None.
        true_headers: of the slices that `origins` numbers; () without.
    """

    stored: np.ndarray
    affine: np.ndarray
    headers: tuple[Dataset, ...]
    slope: np.ndarray
    intercept: np.ndarray
    key: str
    padding: tuple[tuple[int, int] | None, ...]
    origins: SliceOrigins | None = None
    true_headers: tuple[Dataset, ...] = ()

    def __post_init__(self) -> None:
        assert self.stored.dtype.kind in "iu" and self.stored.ndim == 3, "stored is integer (H, W, D)"
        assert self.origins is None or len(self.origins) == self.stored.shape[2], "origins are per slice"
        per_slice = (self.headers, self.slope, self.intercept, self.padding)
        assert all(len(values) == self.stored.shape[2] for values in per_slice), "one per slice"
        for name in ("stored", "affine", "slope", "intercept"):
            object.__setattr__(self, name, _read_only(getattr(self, name)))

    def hu(self, dtype: DTypeLike = np.float32, *, out: np.ndarray | None = None) -> np.ndarray:
        """HU (H, W, D) as a new array, slices contiguous as in `stored`; or written into `out`, of any layout.

        Args:
            dtype: of the new array: a float type, or an integer type that holds every HU exactly.
            out: (H, W, D), takes the values; its own dtype counts.

        Raises:
            ValueError: when an integer type does not hold every HU exactly.
        """
        if out is None:
            out = plain_pages(self.stored.shape[::-1], dtype).transpose(2, 1, 0)
        for k in range(out.shape[2]):  # slice by slice, also where `out` is laid out otherwise: 4 times faster
            fill_hu(out[:, :, k], self.stored[:, :, k], slope=float(self.slope[k]), intercept=float(self.intercept[k]))
            let_go(self.stored[:, :, k])
            let_go(out[:, :, k])
        return out

    def slice_hu(self, k: int) -> np.ndarray:
        """HU (H, W) of slice k, float32."""
        stored = self.stored[:, :, k]
        hu = np.empty_like(stored, dtype=np.float32)
        fill_hu(hu, stored, slope=float(self.slope[k]), intercept=float(self.intercept[k]))
        let_go(stored)
        return hu

    @property
    def array(self) -> np.ndarray:
        """`hu()`, float32; made at each call, and read-only, so that nobody believes to have changed the volume."""
        return _read_only(self.hu())

    def slice_padding(self, k: int) -> np.ndarray:
        """Bool (H, W): where slice k holds Pixel Padding Value."""
        stored, padding = self.stored[:, :, k], self.padding[k]
        if padding is None:
            return np.zeros_like(stored, dtype=bool)
        mask: np.ndarray = (stored >= padding[0]) & (stored <= padding[1])
        let_go(stored)
        return mask

    @property
    def is_padded(self) -> bool:
        """Whether any slice names a Pixel Padding Value."""
        return any(padding is not None for padding in self.padding)

    @property
    def padding_mask(self) -> np.ndarray | None:
        """Bool (H, W, D), made at each call: where there is padding; None where no slice names a value."""
        if not self.is_padded:
            return None
        return _read_only(np.stack([self.slice_padding(k).T for k in range(self.shape[2])]).transpose(2, 1, 0))

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
        height, width, depth = self.stored.shape
        return height, width, depth

    @property
    def resampled(self) -> bool:
        """Whether slices were interpolated between true ones; `origins.reason` says why."""
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


def _read_only(array: np.ndarray) -> np.ndarray:
    view = array.view()
    view.flags.writeable = False
    return view
