"""Loading for restoration: whole HU stay whole numbers, so that a long study takes half the memory."""

from typing import Any

import numpy as np
from monai.config import KeysCollection

from bundle.dicom.reader import LoadSeriesd, SeriesReader, meta_of
from bundle.dicom.thin_slices import ThinSlices
from bundle.dicom.volume import Volume
from bundle.restoration.nifti import NiftiSource


class CompactReader(SeriesReader):
    """SeriesReader whose arrays are int16 where that holds every HU exactly, else float32.

    The meta data hold, as `volume`, what a restoration is added to: a Volume, or a NiftiSource.

    Args:
        gaps: as for SeriesReader.
        thin: the grid of thin slices that volumes are brought onto; None leaves their slices.
    """

    def __init__(self, *, gaps: str = "refuse", thin: ThinSlices | None = None) -> None:
        super().__init__(gaps=gaps)
        self.thin = thin

    def get_data(self, img: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """Array (H, W, D) in HU and its meta data, as SeriesReader's."""
        if isinstance(img, Volume):
            img = img if self.thin is None else self.thin.volume(img)
            return _compact(img), {**meta_of(img.affine_ras, img.shape, img.key), "volume": img}
        array, meta = super().get_data(img)
        affine = np.asarray(img.image.affine)
        if self.thin is not None:
            array, affine = self.thin.array(array, affine)
            meta = meta_of(affine, array.shape, img.key)
        return array, {**meta, "volume": NiftiSource(array.copy(), affine)}


class LoadCompactSeriesd(LoadSeriesd):
    """LoadSeriesd with CompactReader.

    Args:
        keys: of the items that hold a list of files, a folder or a NIfTI file.
        allow_missing_keys: whether items without a key pass.
        gaps: as for SeriesReader.
        thin: as for CompactReader.
    """

    def __init__(
        self,
        keys: KeysCollection,
        allow_missing_keys: bool = False,
        *,
        gaps: str = "refuse",
        thin: ThinSlices | None = None,
    ) -> None:
        super().__init__(keys, allow_missing_keys, gaps=gaps)
        self._reader = CompactReader(gaps=gaps, thin=thin)


def _compact(volume: Volume) -> np.ndarray:
    try:
        return volume.hu(np.int16)
    except ValueError:  # fractions of HU, or values beyond 16 bits
        return volume.hu(np.float32)
