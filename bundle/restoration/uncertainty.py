"""The spread of samples as something others can read: a DICOM Parametric Map (PS3.3 A.75) that refers to the series.

The deviation is that of the *restoration*: how far, given the input, one plausible image of the scan at the dose of
the training targets lies from the mean of the samples. Such an image has noise of its own, and the interval is for it,
noise included, not for the noise-free anatomy, which nobody has measured (docs/inference.md).
"""

import datetime
import itertools
import tempfile
from pathlib import Path
from typing import Any, BinaryIO

import highdicom
import numpy as np
import pydicom
from pydicom.sr.codedict import codes

from bundle import __version__
from bundle.dicom.derived_header import series_description
from bundle.dicom.elements import quiet
from bundle.dicom.uids import derived_uid
from bundle.dicom.writer import DerivedSeries
from bundle.files import digest_of
from bundle.pages import Pages, let_go, plain_pages
from bundle.restoration.pooling import pooled
from bundle.restoration.registry import Calibration
from bundle.restoration.restored import left_out_hu

STEP_HU = 1 / 64  # of the stored 16-bit values: up to 1024 HU
_SERIES_NUMBER_OFFSET = 1000


class Uncertainty:
    """Standard deviation per voxel, pooled over neighbours and calibrated, slice by slice.

    Args:
        deviation: over the samples, HU (H, W, D), float16 or float32.
        scale: factor on it (`registry.Calibration.factors`).
        floor_hu: per slice (D,), added in quadrature wherever there is a deviation: what all samples miss alike, and
            what was left out; None adds nothing.
        calibrated: whether scale and floor were fitted to samples that are drawn as these were, and to such series.
    """

    dtype = np.dtype(np.float32)

    def __init__(
        self, deviation: np.ndarray, *, scale: float, floor_hu: np.ndarray | None = None, calibrated: bool = False
    ) -> None:
        self._deviation, self._scale = deviation, np.float32(scale)
        self._floor_hu = np.zeros(deviation.shape[2]) if floor_hu is None else floor_hu
        self.calibrated = calibrated

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, D)."""
        height, width, depth = self._deviation.shape
        return height, width, depth

    def __getitem__(self, index: tuple[slice, slice, int]) -> np.ndarray:
        """HU (H, W) of one slice, float32: [:, :, k]."""
        values = pooled(self._deviation[index])
        let_go(self._deviation[index])
        calibrated = np.hypot(self._scale * values, np.float32(self._floor_hu[index[2]]))
        return np.where(values > 0, calibrated, np.float32(0))

    def described(self) -> dict[str, Any]:
        """For the summary: how large it is and what it means."""
        means = [float(values[values > 0].mean()) for k in range(self.shape[2]) if (values := self[:, :, k]).any()]
        return {
            "meaning": "standard deviation per voxel of a scan at the training targets' dose, its own noise included",
            "mean_hu": round(float(np.mean(means)), 3) if means else 0.0,
            "scale": round(float(self._scale), 4),
            "mean_floor_hu": round(float(self._floor_hu.mean()), 3),
            "calibrated": self.calibrated,
        }


def uncertainty_of(
    deviation: np.ndarray,
    difference: np.ndarray,
    *,
    calibration: Calibration,
    noise_hu: np.ndarray,
    samples: int,
    strength: float,
    calibrated: bool = False,
) -> Uncertainty:
    """The uncertainty of a restoration: of what it changes, whatever the strength; elsewhere none is by our doing.

    Args:
        deviation: over the samples, HU (H, W, D); set to 0, in place, where nothing is changed.
        difference: restored minus input in HU (H, W, D), 0 where nothing may be touched.
        calibration: of the weights' card.
        noise_hu: noise level of the input per slice (D,).
        samples: how many were averaged.
        strength: share of the difference that is applied.
        calibrated: as for Uncertainty.
    """
    for k in range(deviation.shape[2]):
        deviation[:, :, k][difference[:, :, k] == 0] = 0
        let_go(difference[:, :, k])
        let_go(deviation[:, :, k])
    left_out = left_out_hu(difference, strength=strength)
    scale, floor_hu = calibration.factors(noise_hu, samples=samples, left_out_hu=left_out)
    return Uncertainty(deviation, scale=scale, floor_hu=floor_hu, calibrated=calibrated)


def write_parametric_map(
    folder: Path,
    uncertainty: Uncertainty,
    derived: DerivedSeries,
    *,
    now: datetime.datetime,
    pages: Pages = plain_pages,
) -> Path:
    """Write uncertainty/deviation.dcm, a Parametric Map on the derived series' frames; returns its path.

    Args:
        folder: created when absent.
        uncertainty: on the derived series' grid.
        derived: what was written before; its files are read for their headers.
        now: the run's clock.
        pages: makes the array for the stored values, in memory or on disk.
    """
    height, width, depth = uncertainty.shape
    folder.mkdir(parents=True, exist_ok=True)
    stored = pages((depth, width, height), np.uint16)
    for k in range(depth):
        stored[k] = np.clip(np.rint(uncertainty[:, :, k].T / STEP_HU), 0, np.iinfo(np.uint16).max)
        let_go(stored[k])
    origin = digest_of(itertools.chain([derived.series_uid], map(_bytes, stored)))
    with quiet(), tempfile.TemporaryFile(dir=folder) as pixels:
        sources = [pydicom.dcmread(path, stop_before_pixels=True) for path in derived.paths]
        image = _ParametricMap(
            pixels,
            source_images=sources,
            pixel_array=stored,
            series_instance_uid=derived_uid("series", "uncertainty", origin),
            series_number=int(sources[0].SeriesNumber) + _SERIES_NUMBER_OFFSET,
            sop_instance_uid=derived_uid("instance", "uncertainty", origin),
            instance_number=1,
            manufacturer="ct-enhance",
            manufacturer_model_name="CT enhancement MONAI bundle",
            software_versions=__version__,
            device_serial_number="0",
            contains_recognizable_visual_features=False,
            real_world_value_mappings=[_mapping()],
            window_center=16.0 / STEP_HU,
            window_width=32.0 / STEP_HU,
            content_label="UNCERTAINTY",
            content_description=("calibrated" if uncertainty.calibrated else "uncalibrated") + " deviation, HU",
        )
        before = str(sources[0].get("SeriesDescription", "")).removesuffix(derived.series_suffix)
        image.SeriesDescription = series_description(before, f"{derived.series_suffix} uncertainty")
        for keyword in ("BodyPartExamined", "Laterality"):  # highdicom leaves them out; one of them is required
            if keyword in sources[0]:
                setattr(image, keyword, sources[0][keyword].value)
        _set_clock(image, now)
        _set_organization(image, derived_uid("dimensions", origin))
        image.use_pixels()
        path = folder / "deviation.dcm"
        image.save_as(path, enforce_file_format=True)
    return path


class _ParametricMap(highdicom.pm.ParametricMap):  # type: ignore[misc] # highdicom is untyped
    """highdicom's, whose frames go into a file as they are made: it would hold all of them three times."""

    def __init__(self, pixels: BinaryIO, **options: Any) -> None:
        self._pixels = pixels
        super().__init__(**options)

    def _encode_pixels_native(self, planes: np.ndarray) -> bytes:
        self._pixels.write(planes.tobytes())
        return b""

    def use_pixels(self) -> None:
        """Take the file in the place of the empty Pixel Data."""
        length = self._pixels.tell()
        assert length == self.NumberOfFrames * self.Rows * self.Columns * 2, "highdicom encodes frame by frame"
        self._pixels.seek(0)
        self.PixelData = self._pixels  # type: ignore[assignment] # pydicom writes it block by block


def _bytes(frame: np.ndarray) -> bytes:
    values = frame.tobytes()
    let_go(frame)
    return values


def _mapping() -> highdicom.pm.RealWorldValueMapping:
    """Stored values to HU (PS3.3 C.7.6.16.2.11)."""
    return highdicom.pm.RealWorldValueMapping(
        lut_label="HU",
        lut_explanation="Standard deviation of the restored HU",
        unit=codes.UCUM.HounsfieldUnit,
        value_range=(0, int(np.iinfo(np.uint16).max)),
        slope=STEP_HU,
        intercept=0.0,
        quantity_definition=codes.SCT.StandardDeviation,
    )


def _set_clock(image: pydicom.Dataset, now: datetime.datetime) -> None:
    """Highdicom writes the time of writing: the same inputs shall give the same bytes."""
    date, time = now.strftime("%Y%m%d"), now.strftime("%H%M%S.%f")
    for item in image.get("ContributingEquipmentSequence", []):
        if "highdicom" in str(item.get("SoftwareVersions", "")) + str(item.get("ManufacturerModelName", "")):
            item.ContributionDateTime = date + time
    for name in ("InstanceCreation", "Series", "Content"):
        if f"{name}Date" in image:
            setattr(image, f"{name}Date", date)
        if f"{name}Time" in image:
            setattr(image, f"{name}Time", time)


def _set_organization(image: pydicom.Dataset, uid: str) -> None:
    """Highdicom draws this UID at random; the same inputs shall give the same bytes."""
    for item in (*image.DimensionOrganizationSequence, *image.DimensionIndexSequence):
        item.DimensionOrganizationUID = uid
