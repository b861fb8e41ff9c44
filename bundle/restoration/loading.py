"""Loading for restoration: whole HU stay whole numbers, and a long study stays on disk.

A study on disk is laid out in reading order right away, so that the orientation after it finds nothing to turn: MONAI
would turn all of it in memory.
"""

from typing import Any

import nibabel
import numpy as np
from monai.config import KeysCollection
from numpy.typing import DTypeLike

from bundle.data.transforms import axis_codes
from bundle.dicom.geometry import slices_last
from bundle.dicom.reader import LoadSeriesd, SeriesReader, meta_of
from bundle.dicom.stored_nifti import StoredNifti
from bundle.dicom.thin_slices import ThinSlices
from bundle.dicom.volume import Volume
from bundle.pages import Scratch
from bundle.restoration.nifti import NiftiSource

_UNTURNED = np.array([[0, 1], [1, 1], [2, 1]])  # nibabel: axis stays, direction stays


class CompactReader(SeriesReader):
    """SeriesReader whose arrays are int16 where that holds every HU exactly, else float32.

    The meta data hold, as `volume`, what a restoration is added to: a Volume, or a NiftiSource.

    Args:
        gaps: as for SeriesReader.
        thin: the grid of thin slices that volumes are brought onto; None leaves their slices.
        scratch: where stored values and HU of DICOM series lie. On disk the array comes in the voxel order that
            SlicesLastOrientationd asks for, and with that order's affine; `volume` keeps its own. NIfTI comes in that
            order always, its `volume` too.
    """

    def __init__(self, *, gaps: str = "refuse", thin: ThinSlices | None = None, scratch: Scratch | None = None) -> None:
        scratch = scratch or Scratch()
        super().__init__(gaps=gaps, pages=scratch)
        self.thin = thin
        self.scratch = scratch

    def get_data(self, img: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """Array (H, W, D) in HU and its meta data, as SeriesReader's."""
        if isinstance(img, Volume):
            img = img if self.thin is None else self.thin.volume(img, self.scratch)
            affine = img.affine_ras
            order = reading_order(affine) if self.scratch.on_disk else _UNTURNED
            array = self._compact(img, order)
            affine = affine @ nibabel.orientations.inv_ornt_aff(order, img.shape)  # type: ignore[no-untyped-call]
            return array, {**meta_of(affine, array.shape, img.key), "volume": img}
        axes = slices_last(img.affine_ras)
        order = reading_order(img.affine_ras[:, [*axes, 3]])[np.argsort(axes)]  # of the file's own axes
        affine = img.affine_ras @ nibabel.orientations.inv_ornt_aff(order, img.shape)  # type: ignore[no-untyped-call]
        array = self._compact(img, order)
        if self.thin is not None:
            array, affine = self.thin.array(array, affine, self.scratch)
        of_file = nibabel.orientations.ornt_transform(_UNTURNED, order)  # type: ignore[no-untyped-call]
        source = NiftiSource(array, affine, order_of_file=of_file)
        return array, {**meta_of(affine, array.shape, img.key), "volume": source}

    def _compact(self, volume: Volume | StoredNifti, order: np.ndarray) -> np.ndarray:
        """HU (H, W, D) with axes and directions as `order` says, slices contiguous."""
        try:
            return self._hu(volume, order, np.int16)
        except ValueError:  # fractions of HU, or values beyond 16 bits
            return self._hu(volume, order, np.float32)

    def _hu(self, volume: Volume | StoredNifti, order: np.ndarray, kind: DTypeLike) -> np.ndarray:
        height, width, depth = (volume.shape[int(axis)] for axis in np.argsort(order[:, 0]))
        array = self.scratch((depth, width, height), kind).transpose(2, 1, 0)
        back = nibabel.orientations.ornt_transform(_UNTURNED, order)  # type: ignore[no-untyped-call]
        volume.hu(out=turned(array, back))
        return array


class LoadCompactSeriesd(LoadSeriesd):
    """LoadSeriesd with CompactReader.

    Args:
        keys: of the items that hold a list of files, a folder or a NIfTI file.
        allow_missing_keys: whether items without a key pass.
        gaps: as for SeriesReader.
        thin: as for CompactReader.
        scratch: as for CompactReader.
    """

    def __init__(
        self,
        keys: KeysCollection,
        allow_missing_keys: bool = False,
        *,
        gaps: str = "refuse",
        thin: ThinSlices | None = None,
        scratch: Scratch | None = None,
    ) -> None:
        super().__init__(keys, allow_missing_keys, gaps=gaps)
        self._reader = CompactReader(gaps=gaps, thin=thin, scratch=scratch)


def reading_order(affine_ras: np.ndarray) -> np.ndarray:
    """Where each voxel axis goes and which way, as nibabel writes it (3, 2), for SlicesLastOrientationd to do nothing.

    Args:
        affine_ras: (i, j, k, 1) -> RAS mm.
    """
    here = nibabel.io_orientation(affine_ras)  # type: ignore[no-untyped-call]
    there = nibabel.orientations.axcodes2ornt(axis_codes(affine_ras))  # type: ignore[no-untyped-call]
    order: np.ndarray = nibabel.orientations.ornt_transform(here, there)  # type: ignore[no-untyped-call]
    return order


def turned(array: np.ndarray, order: np.ndarray) -> np.ndarray:
    """A view (nothing is copied) of an array (H, W, D) with its axes and directions as `order` says."""
    view: np.ndarray = nibabel.orientations.apply_orientation(array, order)  # type: ignore[no-untyped-call]
    return view


def turned_to(array: np.ndarray, affine_from: np.ndarray, affine_to: np.ndarray) -> np.ndarray:
    """A view of an array (H, W, D) on one grid in the voxel order of another, which is the same but for that order."""
    steps = np.rint(np.linalg.solve(affine_to[:3, :3], affine_from[:3, :3])).astype(int)
    assert (np.abs(steps).sum(axis=0) == 1).all() and (np.abs(steps).sum(axis=1) == 1).all(), "the same grid"
    goes_to = np.abs(steps).argmax(axis=0)
    return turned(array, np.stack([goes_to, steps[goes_to, [0, 1, 2]]], axis=1))
