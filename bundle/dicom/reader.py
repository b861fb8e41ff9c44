"""Our reader for MONAI's transforms: DICOM series and NIfTI files in HU, and nothing that merely looks like it."""

import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

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
from bundle.dicom.series import Series
from bundle.dicom.slice_grid import check_gaps_option
from bundle.dicom.stored_nifti import read_nifti
from bundle.dicom.volume import Volume
from bundle.errors import BundleError
from bundle.pages import Pages, plain_pages

_NIFTI_SUFFIXES = (".nii", ".nii.gz")


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
        """Read a Volume (DICOM) or a StoredNifti; a Series of the index is loaded as it is.

        Raises:
            BundleError: when the input is no single CT volume in HU.
        """
        del kwargs
        if isinstance(data, Series):
            return data.load(self.pages)
        paths = [str(data)] if isinstance(data, str | os.PathLike) else [str(path) for path in data]
        if len(paths) == 1 and paths[0].lower().endswith(_NIFTI_SUFFIXES):
            return read_nifti(Path(paths[0]), self.pages)
        return read_volume(paths, gaps=self.gaps, pages=self.pages)

    def get_data(self, img: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """Array (H, W, D), float32 HU, writable, and its meta data; a NIfTI file's slices come last in any case.

        Meta data: `affine` and `original_affine` (i, j, k, 1) -> RAS mm, `spatial_shape`, `space`, `series_key`,
        and for DICOM `volume`, the Volume itself (in a collated batch its series key).
        """
        if isinstance(img, Volume):
            array = img.hu(out=np.empty(img.shape, np.float32))
            return array, {**meta_of(img.affine_ras, array.shape, img.key), "volume": img}
        axes = slices_last(img.affine_ras)
        array = np.empty([img.shape[axis] for axis in axes], np.float32)
        img.hu(out=array.transpose(np.argsort(axes)))
        return array, meta_of(img.affine_ras[:, [*axes, 3]], array.shape, img.key)


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
