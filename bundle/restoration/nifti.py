"""NIfTI in and out, slice by slice: input volumes that are no DICOM, and results for programs that want NIfTI."""

import gzip
from pathlib import Path
from typing import Protocol

import nibabel
import numpy as np

from bundle.dicom.geometry import grid_spacing_mm
from bundle.dicom.volume import Volume
from bundle.pages import Pages, let_go, plain_pages
from bundle.restoration.restored import SourceSlices

_DATA_OFFSET = 352  # a NIfTI-1 header and its empty extension flag
_COMPRESSION = 1  # noise hardly compresses; higher levels take many times longer


class Slices(Protocol):
    """What can be written: a shape, and [:, :, k] as (H, W)."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, D)."""

    def __getitem__(self, index: tuple[slice, slice, int]) -> np.ndarray:
        """One slice (H, W)."""


class NiftiSource:
    """A NIfTI volume in HU as restorations want it (`SourceSlices`).

    Args:
        array: HU (H, W, D), int16 or float32.
        affine_ras: (i, j, k, 1) -> RAS mm.
        order_of_file: where these axes go in the file and which way, as nibabel writes it (3, 2); None: as they are.
    """

    def __init__(self, array: np.ndarray, affine_ras: np.ndarray, *, order_of_file: np.ndarray | None = None) -> None:
        self._array = array
        self.affine_ras = np.asarray(affine_ras, np.float64)
        self._order_of_file = order_of_file

    def __copy__(self) -> "NiftiSource":
        return self

    def __deepcopy__(self, memo: object) -> "NiftiSource":  # as Volume: MONAI copies meta data at every transform
        return self

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, D)."""
        height, width, depth = self._array.shape
        return height, width, depth

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Along H, W and between slice planes."""
        return grid_spacing_mm(self.affine_ras)

    def slice_hu(self, k: int) -> np.ndarray:
        """HU (H, W) of slice k, float32."""
        hu = np.array(self._array[:, :, k], np.float32)
        let_go(self._array[:, :, k])
        return hu

    def as_in_file(self, array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A view of an array (H, W, D) on this grid in the file's order of voxels, and that order's affine (RAS)."""
        order = self._order_of_file
        if order is None:
            return array, self.affine_ras
        view: np.ndarray = nibabel.orientations.apply_orientation(array, order)  # type: ignore[no-untyped-call]
        back = nibabel.orientations.inv_ornt_aff(order, array.shape)  # type: ignore[no-untyped-call]
        return view, self.affine_ras @ back

    def slice_padding(self, k: int) -> np.ndarray:
        """NIfTI names no padding."""
        return np.zeros(self._array.shape[:2], bool)


def write_nifti(path: Path, slices: Slices, source: SourceSlices, pages: Pages = plain_pages) -> None:
    """Write a float32 volume (H, W, D) on the source's grid, in its file's order of voxels.

    Args:
        path: ends in .nii.gz; its folder is created.
        slices: the values; one slice is in memory at a time.
        source: a Volume or NiftiSource; gives the affine.
        pages: where a volume that goes back into a NIfTI file's order is put together.
    """
    assert isinstance(source, Volume | NiftiSource)
    affine = source.affine_ras
    if isinstance(source, NiftiSource):
        slices, affine = source.as_in_file(_whole(slices, pages))
    header = nibabel.Nifti1Header()  # type: ignore[no-untyped-call]
    header.set_data_shape(slices.shape)
    header.set_data_dtype(np.dtype("<f4"))
    header.set_xyzt_units("mm", "sec")
    header.set_qform(affine, code="scanner")
    header.set_sform(affine, code="scanner")
    header["magic"] = b"n+1"
    header.set_data_offset(_DATA_OFFSET)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without a time or a name in the archive: the same values give the same bytes.
    with path.open("wb") as raw, gzip.GzipFile("", "wb", _COMPRESSION, raw, mtime=0) as stream:
        stream.write(header.binaryblock)
        stream.write(b"\0" * (_DATA_OFFSET - len(header.binaryblock)))
        for k in range(slices.shape[2]):
            values = slices[:, :, k]
            stream.write(np.asarray(values, "<f4").tobytes(order="F"))
            let_go(values)


def _whole(slices: Slices, pages: Pages) -> np.ndarray:
    """All slices, float32 (H, W, D), those of one k together."""
    height, width, depth = slices.shape
    whole = pages((depth, width, height), np.float32).transpose(2, 1, 0)
    for k in range(depth):
        whole[:, :, k] = slices[:, :, k]
        let_go(whole[:, :, k])
    return whole
