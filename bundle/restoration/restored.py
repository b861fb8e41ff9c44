"""A restored series as slices that are made when they are asked for: input plus a difference kept in half precision."""

from collections.abc import Callable
from typing import Protocol

import numpy as np

from bundle.pages import let_go
from bundle.restoration.region import added, touchable


class SourceSlices(Protocol):
    """What a restoration is added to: a `bundle.dicom.volume.Volume`, or a NIfTI image."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, D)."""

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Along H, W and D."""

    def slice_hu(self, k: int) -> np.ndarray:
        """HU (H, W), float32."""

    def slice_padding(self, k: int) -> np.ndarray:
        """Bool (H, W): what was never measured."""


def left_out_hu(difference: np.ndarray, *, strength: float) -> np.ndarray:
    """What a strength below 1 leaves out, HU per slice (D,): (1 - strength) x root mean square of the difference.

    Args:
        difference: restored minus input in HU (H, W, D), 0 where nothing may be touched; these voxels do not count.
        strength: share of it that is applied.
    """
    if strength == 1:
        return np.zeros(difference.shape[2])
    found = []
    for k in range(difference.shape[2]):
        change = difference[:, :, k].astype(np.float64)
        let_go(difference[:, :, k])
        found.append(np.sqrt(np.square(change).sum() / max(np.count_nonzero(change), 1)))
    return (1 - strength) * np.array(found)


class RestoredSlices:
    """HU of the source plus strength times a difference where a restoration may touch it, else the source exactly.

    A study's float32 is never in memory: `[:, :, k]` makes one slice, and is all that the DICOM writer asks for.

    Args:
        source: the input.
        difference: restored minus input in HU (H, W, D), float16 or float32; set to 0, in place, where nothing may
            be touched. Half precision is exact to 0.02 HU for changes below 32 HU.
        strength: 0 gives the input back bit for bit, 1 the whole restoration.
        on_slice: called with (k, input (H, W), result (H, W), region (H, W)) of every slice, once.
    """

    dtype = np.dtype(np.float32)

    def __init__(
        self,
        source: SourceSlices,
        difference: np.ndarray,
        *,
        strength: float = 1.0,
        on_slice: Callable[[int, np.ndarray, np.ndarray, np.ndarray], None] | None = None,
    ) -> None:
        if difference.shape != source.shape:
            raise ValueError(f"difference has shape {difference.shape}, the source {source.shape}")
        self.source = source
        self.difference = difference
        self.strength = strength
        for k in range(self.shape[2]):
            hu = source.slice_hu(k)
            region = touchable(hu[:, :, None], source.slice_padding(k)[:, :, None])[:, :, 0]
            difference[:, :, k][~region] = 0
            let_go(difference[:, :, k])
            if on_slice is not None:
                on_slice(k, hu, self[:, :, k], region)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, D)."""
        return self.source.shape

    def __getitem__(self, index: tuple[slice, slice, int]) -> np.ndarray:
        """One whole slice: [:, :, k]."""
        whole = slice(None)
        assert index[:2] == (whole, whole) and isinstance(index[2], int), "slices are made one at a time"
        hu = self.source.slice_hu(index[2])
        change = self.difference[:, :, index[2]].astype(np.float32)
        let_go(self.difference[:, :, index[2]])
        return added(hu, change, strength=self.strength)

    def array(self) -> np.ndarray:
        """All of it, float32 (H, W, D): only where a whole array is needed."""
        return np.stack([self[:, :, k] for k in range(self.shape[2])], axis=2)
