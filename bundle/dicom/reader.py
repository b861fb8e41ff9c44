"""Our reader for MONAI's transforms: DICOM series and NIfTI files in HU, and nothing that merely looks like it."""

import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data.image_reader import ImageReader
from monai.data.meta_tensor import MetaTensor
from monai.transforms.io.dictionary import LoadImaged
from monai.transforms.transform import MapTransform
from monai.transforms.utility.array import EnsureChannelFirst
from monai.utils.enums import MetaKeys, SpaceKeys
from monai.utils.misc import ImageMetaKey
from torch.utils.data._utils.collate import default_collate_fn_map  # torch documents it as the place to extend

from bundle.dicom.geometry import slices_last
from bundle.dicom.index import read_volume
from bundle.dicom.series import KEY_DIGITS, Series
from bundle.dicom.slice_grid import check_gaps_option
from bundle.dicom.volume import Volume
from bundle.errors import BundleError
from bundle.files import file_digest
from bundle.pages import Pages, plain_pages

_NIFTI_SUFFIXES = (".nii", ".nii.gz")
# Every CT of a patient shows air; what holds none below this is rescaled, windowed or no CT.
AIR_BELOW_HU = -500.0
HIGHEST_HU = 100_000.0
LOWEST_HU = -40_000.0


def _series_keys(batch: list[Volume], *, collate_fn_map: Any = None) -> list[str]:
    """Collate Volumes to their series keys: MONAI can take only plain types apart again (decollate_batch)."""
    del collate_fn_map
    return [volume.key for volume in batch]


default_collate_fn_map[Volume] = _series_keys


class SeriesReader(ImageReader):
    """Reads one CT volume from a list of DICOM files, a folder with one series, or a NIfTI file in HU.

    Args:
        gaps: 'refuse' DICOM series with gaps or uneven spacing, or 'resample' them by true positions.
        pages: makes the array for stored values, in memory or on disk.
    """

    def __init__(self, *, gaps: str = "refuse", pages: Pages = plain_pages) -> None:
        super().__init__()
        self.gaps = check_gaps_option(gaps)
        self.pages = pages

    def verify_suffix(self, filename: Sequence[os.PathLike | str] | os.PathLike | str) -> bool:
        """Accept everything: DICOM files need no suffix; `read` says what is wrong."""
        del filename
        return True

    def read(self, data: Series | Sequence[os.PathLike | str] | os.PathLike | str, **kwargs: Any) -> Any:
        """Read a Volume (DICOM) or a checked nibabel image; a Series of the index is loaded as it is.

        Raises:
            BundleError: when the input is no single CT volume in HU.
        """
        del kwargs
        if isinstance(data, Series):
            return data.load(self.pages)
        paths = [str(data)] if isinstance(data, str | os.PathLike) else [str(path) for path in data]
        if len(paths) == 1 and paths[0].lower().endswith(_NIFTI_SUFFIXES):
            return read_nifti(Path(paths[0]))
        return read_volume(paths, gaps=self.gaps, pages=self.pages)

    def get_data(self, img: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """Array (H, W, D), float32 HU, writable, and its meta data; a NIfTI file's slices come last in any case.

        Meta data: `affine` and `original_affine` (i, j, k, 1) -> RAS mm, `spatial_shape`, `space`, `series_key`,
        and for DICOM `volume`, the Volume itself (in a collated batch its series key).
        """
        if isinstance(img, Volume):
            array = img.hu(out=np.empty(img.shape, np.float32))
            return array, {**meta_of(img.affine_ras, array.shape, img.key), "volume": img}
        axes = slices_last(img.image.affine)
        stored = np.asarray(img.image.dataobj).reshape(img.image.shape[:3])
        array = np.array(stored.transpose(axes), dtype=np.float32, order="C")
        return array, meta_of(np.asarray(img.image.affine)[:, [*axes, 3]], array.shape, img.key)


class LoadSeriesd(LoadImaged):
    """LoadImaged with our reader alone, channel first.

    MONAI's LoadImage keeps its default readers registered and tries them in silence when the named one refuses,
    so that a series refused for a missing slice would come back read by ITK. Here a refusal is final.

    Args:
        keys: of the items that hold a list of files, a folder or a NIfTI file.
        allow_missing_keys: whether items without a key pass.
        gaps: as for SeriesReader.
    """

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False, *, gaps: str = "refuse") -> None:
        # Not LoadImaged's own __init__: it registers the default readers, warns about some, and its loader
        # refuses meta data that hold a Volume.
        MapTransform.__init__(self, keys, allow_missing_keys)
        self._reader = SeriesReader(gaps=gaps)

    def register(self, reader: ImageReader) -> None:
        """Refuse: a second reader is what this class exists to avoid.

        Raises:
            BundleError: always.
        """
        raise BundleError(f"LoadSeriesd takes no further reader ({type(reader).__name__})", hint="use LoadImaged")

    def __call__(self, data: Mapping[Hashable, Any], reader: ImageReader | None = None) -> dict[Hashable, Any]:
        """Replace each key's files by a MetaTensor (1, H, W, D) in HU; BundleErrors of the reader reach the caller."""
        if reader is not None:
            self.register(reader)
        result = dict(data)
        for key in self.key_iterator(result):
            array, meta = self._reader.get_data(self._reader.read(result[key]))
            image = MetaTensor(torch.from_numpy(array), meta=meta)
            result[key] = EnsureChannelFirst()(image)
        return result


class CheckedNifti:
    """A NIfTI image that passed `read_nifti`'s checks, and its series key."""

    def __init__(self, image: Any, key: str) -> None:
        self.image = image
        self.key = key


def read_nifti(path: Path) -> CheckedNifti:
    """Open a NIfTI file and check that it is a CT volume in HU.

    Raises:
        BundleError: when it cannot be read, is not 3D, has no orientation, or its values are not HU.
    """
    try:
        image = nibabel.load(path)
        values = np.asarray(image.dataobj)  # type: ignore[attr-defined]
        codes = int(image.header["sform_code"]), int(image.header["qform_code"])  # type: ignore[index]
    except Exception as error:  # nibabel raises nearly anything on damaged bytes
        raise BundleError(f"'{path.name}' cannot be read as NIfTI", hint="convert the series again") from error
    affine: np.ndarray = np.asarray(image.affine, dtype=np.float64)  # type: ignore[attr-defined]
    if values.ndim == 4 and values.shape[3] == 1:
        values = values[..., 0]
    if values.ndim != 3 or min(values.shape) < 2:
        raise BundleError(
            f"'{path.name}' is no 3D volume: its shape is {values.shape}", hint="give one volume per file"
        )
    if codes == (0, 0):
        raise BundleError(f"'{path.name}' has no orientation: sform and qform codes are 0", hint="convert it again")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise BundleError(f"'{path.name}' has an impossible affine", hint="convert it again")
    _check_hu(values, path.name)
    return CheckedNifti(image, file_digest(path)[:KEY_DIGITS])


def _check_hu(values: np.ndarray, name: str) -> None:
    if values.dtype.kind not in "iuf" or not np.isfinite(values).all():
        raise BundleError(f"'{name}' holds values that are no finite numbers", hint="HU are needed")
    low, high = float(values.min()), float(values.max())
    if low > AIR_BELOW_HU or high <= AIR_BELOW_HU or low < LOWEST_HU or high > HIGHEST_HU:
        raise BundleError(
            f"'{name}' holds values from {low:.4g} to {high:.4g}: these are not HU (air would be about -1000)",
            hint="give the CT in HU, not windowed, normalised or shifted",
        )


def meta_of(affine_ras: np.ndarray, shape: tuple[int, ...], key: str) -> dict[str, Any]:
    """Meta data of an array in HU (`SeriesReader.get_data`)."""
    return {
        MetaKeys.AFFINE: np.array(affine_ras, dtype=np.float64),
        MetaKeys.ORIGINAL_AFFINE: np.array(affine_ras, dtype=np.float64),
        MetaKeys.SPATIAL_SHAPE: np.array(shape),
        MetaKeys.ORIGINAL_CHANNEL_DIM: float("nan"),  # MONAI's word for "no channel axis"
        MetaKeys.SPACE: SpaceKeys.RAS,
        "series_key": key,
        ImageMetaKey.FILENAME_OR_OBJ: key,  # what savers name files by; paths may hold names
    }
