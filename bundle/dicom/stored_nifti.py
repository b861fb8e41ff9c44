"""A NIfTI file's voxels as they are stored, in memory or on disk, checked slab by slab to be a CT in HU."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.openers import ImageOpener
from nibabel.volumeutils import apply_read_scaling

from bundle.dicom.series import KEY_DIGITS
from bundle.errors import BundleError
from bundle.files import file_digest
from bundle.pages import Pages, let_go, plain_pages

# Every CT of a patient shows air; what holds none below this is rescaled, windowed or no CT.
AIR_BELOW_HU = -500.0
HIGHEST_HU = 100_000.0
LOWEST_HU = -40_000.0


class StoredNifti:
    """Voxels in the file's own order.

    Args:
        stored: values as they are stored (I, J, K), those of one k together.
        slope: of the file's header; None and a None intercept leave values as they are.
        intercept: of the file's header.
        affine_ras: (i, j, k, 1) -> RAS mm.
        key: series key.
    """

    def __init__(
        self, stored: np.ndarray, slope: float | None, intercept: float | None, *, affine_ras: np.ndarray, key: str
    ) -> None:
        self._stored, self._slope, self._intercept = stored, slope, intercept
        self.affine_ras = affine_ras
        self.key = key

    @property
    def shape(self) -> tuple[int, int, int]:
        """(I, J, K)."""
        i, j, k = self._stored.shape
        return i, j, k

    def hu(self, *, out: np.ndarray) -> np.ndarray:
        """Fill an array (I, J, K), of any order in memory, and return it; nothing else of its size is made.

        Raises:
            ValueError: when its number type is a whole one that does not hold every value.
        """
        for k in range(self.shape[2]):
            plane = self.plane(k)
            if out.dtype.kind == "i":
                limits = np.iinfo(out.dtype)
                if (plane != np.rint(plane)).any() or plane.min() < limits.min or plane.max() > limits.max:
                    raise ValueError(f"{out.dtype} does not hold every value")
            out[:, :, k] = plane
            let_go(out[:, :, k])
        return out

    def plane(self, k: int) -> np.ndarray:
        """Scaled values (I, J) of the file's plane k, in the type that nibabel gives them."""
        values: np.ndarray = apply_read_scaling(np.array(self._stored[:, :, k]), self._slope, self._intercept)  # type: ignore[no-untyped-call]
        let_go(self._stored[:, :, k])
        return values


def read_nifti(path: Path, pages: Pages = plain_pages) -> StoredNifti:
    """Read a NIfTI file and check that it is a CT volume in HU.

    Args:
        path: .nii or .nii.gz.
        pages: makes the array of stored values, in memory or on disk.

    Raises:
        BundleError: when it cannot be read, is not 3D, has no orientation, or its values are not HU.
    """
    try:
        image: Any = nibabel.load(path)
        shape = image.shape
        codes = int(image.header["sform_code"]), int(image.header["qform_code"])
        affine = np.asarray(image.affine, dtype=np.float64)
    except Exception as error:  # nibabel raises nearly anything on damaged bytes
        raise _unreadable(path) from error
    if len(shape) == 4 and shape[3] == 1:
        shape = shape[:3]
    if len(shape) != 3 or min(shape) < 2:
        raise BundleError(f"'{path.name}' is no 3D volume: its shape is {shape}", hint="give one volume per file")
    if codes == (0, 0):
        raise BundleError(f"'{path.name}' has no orientation: sform and qform codes are 0", hint="convert it again")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise BundleError(f"'{path.name}' has an impossible affine", hint="convert it again")
    if image.dataobj.dtype.kind not in "iuf":
        raise _no_numbers(path)
    try:
        stored = _stored(path, image.dataobj, shape, pages)
    except BundleError:
        raise
    except Exception as error:
        raise _unreadable(path) from error
    found = StoredNifti(
        stored, image.dataobj.slope, image.dataobj.inter, affine_ras=affine, key=file_digest(path)[:KEY_DIGITS]
    )
    _check_hu(found, path)
    return found


def _stored(path: Path, proxy: Any, shape: tuple[int, int, int], pages: Pages) -> np.ndarray:
    """The values behind nibabel's array proxy (I, J, K)."""
    planes = pages(shape[::-1], proxy.dtype)
    with ImageOpener(str(path)) as stream:  # type: ignore[no-untyped-call]
        stream.seek(proxy.offset)
        for plane in planes:
            data = stream.read(plane.nbytes)
            plane[...] = np.frombuffer(data, proxy.dtype).reshape(plane.shape)
            let_go(plane)
        stream.read(1)  # at its end an archive is checked
    return planes.T


def _check_hu(image: StoredNifti, path: Path) -> None:
    limits = []
    for k in range(image.shape[2]):
        plane = image.plane(k)
        if not np.isfinite(plane).all():
            raise _no_numbers(path)
        limits.append((float(plane.min()), float(plane.max())))
    low, high = min(low for low, _ in limits), max(high for _, high in limits)
    if low > AIR_BELOW_HU or high <= AIR_BELOW_HU or low < LOWEST_HU or high > HIGHEST_HU:
        raise BundleError(
            f"'{path.name}' holds values from {low:.4g} to {high:.4g}: these are not HU (air would be about -1000)",
            hint="give the CT in HU, not windowed, normalised or shifted",
        )


def _unreadable(path: Path) -> BundleError:
    return BundleError(f"'{path.name}' cannot be read as NIfTI", hint="convert the series again")


def _no_numbers(path: Path) -> BundleError:
    return BundleError(f"'{path.name}' holds values that are no finite numbers", hint="HU are needed")
