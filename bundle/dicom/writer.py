"""Derived CT series (PS3.3 A.3): restored pixels in the source's study, frame of reference and geometry."""

import contextlib
import datetime
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom import config, uid
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset

from bundle.dicom.derived_header import code, decimal_string, inherited, set_values
from bundle.dicom.elements import Unusable, integer, quiet, text
from bundle.dicom.encoding import EncodedSlice, encode
from bundle.dicom.pixels import transfer_syntax
from bundle.dicom.uids import Identifiers, derived_uid, is_valid_uid, repaired_identifiers, source_instance_uid
from bundle.dicom.volume import Volume
from bundle.files import digest

IMPLEMENTATION_CLASS_UID = derived_uid("ct-enhance", "implementation class")
IMPLEMENTATION_VERSION_NAME = "CT_ENHANCE"
_MAX_INTEGER_STRING = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class Derivation:
    """How a series was derived; part of its identity.

    Attributes:
        description: for Derivation Description: the method in words.
        series_suffix: appended to the source's Series Description.
        series_number_offset: added to the source's Series Number.
        settings_digest: hex digest of the settings that decide the pixels.
        weights_digest: hex digest of the weights.
        software_version: of this software.
    """

    description: str
    series_suffix: str
    series_number_offset: int = 1000
    settings_digest: str
    weights_digest: str
    software_version: str


@dataclass(frozen=True, kw_only=True)
class DerivedSeries:
    """What was written.

    Attributes:
        series_uid: its Series Instance UID.
        sop_uids: SOP Instance UID per slice.
        uid_mapping: source UID (or the text that stood in its place) -> UID in the derived series.
        paths: one file per slice.
    """

    series_uid: str
    sop_uids: tuple[str, ...]
    uid_mapping: dict[str, str]
    paths: tuple[Path, ...]


def write_derived_series(
    volume: Volume, restored_hu: np.ndarray, folder: Path, *, derivation: Derivation, now: datetime.datetime
) -> DerivedSeries:
    """Write a restored volume as a derived series, one file per slice; the same inputs give the same bytes.

    Args:
        volume: the source.
        restored_hu: HU (H, W, D); voxels equal to `volume.array` keep their stored value bit for bit.
        folder: where the files go, created when absent; hand in a temporary one to publish it whole.
        derivation: how it was derived.
        now: the one clock of the run.

    Raises:
        BundleError: when the values cannot be stored without loss of range.
    """
    encoded = encode(volume, restored_hu)
    identifiers = repaired_identifiers(volume.headers, key=volume.key)
    pixel_digest = digest(*(image.stored.astype("<i4").tobytes() for image in encoded))
    origin = (pixel_digest, derivation.settings_digest, derivation.weights_digest)
    series_uid = derived_uid("series", identifiers.series, *origin)
    sop_uids = tuple(derived_uid("instance", series_uid, source) for source in identifiers.instances)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with quiet(), _strict_writing():
        for k, image in enumerate(encoded):
            header = _header(volume, k, image, identifiers=identifiers, derivation=derivation, now=now)
            set_values(header, SeriesInstanceUID=series_uid, SOPInstanceUID=sop_uids[k], InstanceNumber=str(k + 1))
            path = folder / f"IM{k + 1:04d}.dcm"
            _write(header, path)
            paths.append(path)
    mapping = dict(identifiers.mapping)
    mapping |= {identifiers.series: series_uid, **dict(zip(identifiers.instances, sop_uids, strict=True))}
    return DerivedSeries(series_uid=series_uid, sop_uids=sop_uids, uid_mapping=mapping, paths=tuple(paths))


def _header(
    volume: Volume,
    k: int,
    image: EncodedSlice,
    *,
    identifiers: Identifiers,
    derivation: Derivation,
    now: datetime.datetime,
) -> Dataset:
    source = volume.headers[k]
    header = inherited(source)
    date, time = now.strftime("%Y%m%d"), now.strftime("%H%M%S.%f")
    description = " ".join(filter(None, [str(header.get("SeriesDescription", "")), derivation.series_suffix]))
    set_values(
        header,
        SOPClassUID=uid.CTImageStorage,
        StudyInstanceUID=identifiers.study,
        FrameOfReferenceUID=identifiers.frame_of_reference,
        Modality="CT",
        ImageType=["DERIVED", "SECONDARY", "AXIAL"],
        SeriesNumber=str(_series_number(source, derivation)),
        SeriesDescription=description[:64],
        InstanceCreationDate=date,
        InstanceCreationTime=time,
        SeriesDate=date,
        SeriesTime=time,
        ContentDate=date,
        ContentTime=time,
        DerivationDescription=derivation.description[:1024],
        SourceImageSequence=[_source_item(source, identifiers.instances[k])],
        ContributingEquipmentSequence=[
            *header.get("ContributingEquipmentSequence", []),
            _equipment_item(derivation, now),
        ],
    )
    if transfer_syntax(source) == uid.JPEGLSNearLossless:
        set_values(header, LossyImageCompression="01", LossyImageCompressionMethod="ISO_14495_1")
    _set_pixels(header, image, slope=float(volume.slope[k]))
    return header


def _series_number(source: Dataset, derivation: Derivation) -> int:
    try:
        number = integer(source, "SeriesNumber") or 0
    except Unusable:
        number = 0
    return min(number + derivation.series_number_offset, _MAX_INTEGER_STRING)


def _source_item(source: Dataset, instance_uid: str) -> Dataset:
    """Image SOP Instance Reference of the source slice (PS3.3 C.7.6.1.1.4)."""
    item = Dataset()
    sop_class = text(source, "SOPClassUID")
    frame = integer(source, "ReferencedFrameNumber")
    if frame is not None:  # all frames share the object's UID, each has a repaired one of its own
        instance_uid = source_instance_uid(source) or instance_uid
        item.ReferencedFrameNumber = str(frame)
    set_values(
        item,
        ReferencedSOPClassUID=sop_class if is_valid_uid(sop_class) else uid.CTImageStorage,
        ReferencedSOPInstanceUID=instance_uid,
        SpatialLocationsPreserved="YES",
        PurposeOfReferenceCodeSequence=[code("121322", "Source image for image processing operation")],
    )
    return item


def _equipment_item(derivation: Derivation, now: datetime.datetime) -> Dataset:
    """Contributing Equipment (PS3.3 C.12.1.1.5): this software, and what decides its output."""
    item = Dataset()
    set_values(
        item,
        Manufacturer="ct-enhance",
        ManufacturerModelName="CT enhancement MONAI bundle",
        SoftwareVersions=derivation.software_version[:64],
        ContributionDateTime=now.strftime("%Y%m%d%H%M%S.%f"),
        ContributionDescription=(
            f"settings sha256 {derivation.settings_digest}; weights sha256 {derivation.weights_digest}"[:1024]
        ),
        PurposeOfReferenceCodeSequence=[code("109103", "Modifying Equipment")],
    )
    return item


def _set_pixels(header: Dataset, image: EncodedSlice, *, slope: float) -> None:
    layout = image.layout
    set_values(
        header,
        SamplesPerPixel=1,
        Rows=layout.rows,
        Columns=layout.columns,
        BitsAllocated=16,
        BitsStored=layout.stored,
        HighBit=layout.stored - 1,
        PixelRepresentation=int(layout.signed),
        RescaleIntercept=decimal_string(image.intercept),
        RescaleSlope=decimal_string(slope),
        RescaleType="HU",
    )
    if image.padding is not None:
        vr = "SS" if layout.signed else "US"  # PS3.3 C.7.5.1.1.2: as Pixel Representation says
        header.add_new("PixelPaddingValue", vr, image.padding[0])
        if image.padding[1] is not None:
            header.add_new("PixelPaddingRangeLimit", vr, image.padding[1])
    header.add_new("PixelData", "OW", image.stored.astype(f"<{image.stored.dtype.str[1:]}").tobytes())


def _write(header: Dataset, path: Path) -> None:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = uid.CTImageStorage
    meta.MediaStorageSOPInstanceUID = uid.UID(header.SOPInstanceUID)
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    meta.ImplementationClassUID = uid.UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    dataset = FileDataset(str(path), header, preamble=b"\0" * 128, file_meta=meta)
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)


@contextlib.contextmanager
def _strict_writing() -> Iterator[None]:
    """Make pydicom refuse to write an invalid value, where it would only warn."""
    before = config.settings.writing_validation_mode
    config.settings.writing_validation_mode = config.RAISE
    try:
        yield
    finally:
        config.settings.writing_validation_mode = before
