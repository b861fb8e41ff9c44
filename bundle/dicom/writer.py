"""Derived CT series (PS3.3 A.3): restored pixels in the source's study, frame of reference and geometry."""

import datetime
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset

from bundle.dicom.derived_header import code, decimal_string, inherited, series_description, set_values
from bundle.dicom.elements import Unusable, integer, quiet, text
from bundle.dicom.encoding import EncodedSlice, encode
from bundle.dicom.instance import check_encoded, named_syntax, strict_writing, write_instance
from bundle.dicom.uids import Identifiers, derived_uid, is_valid_uid, repaired_identifiers, source_instance_uid
from bundle.dicom.volume import Volume
from bundle.files import digest_of

_MAX_INTEGER_STRING = 2**31 - 1
_MANUFACTURER = "ct-enhance"
_BY_WEIGHTS = "weights sha256 "


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
        series_suffix: last words of its Series Description.
    """

    series_uid: str
    sop_uids: tuple[str, ...]
    uid_mapping: dict[str, str]
    paths: tuple[Path, ...]
    series_suffix: str


def write_derived_series(
    volume: Volume,
    restored_hu: np.ndarray,
    folder: Path,
    *,
    derivation: Derivation,
    now: datetime.datetime,
    transfer_syntax: str = "explicit",
) -> DerivedSeries:
    """Write a restored volume as a derived series, one file per slice; the same inputs give the same bytes.

    Args:
        volume: the source.
        restored_hu: HU (H, W, D); voxels equal to `volume.array` keep their stored value bit for bit.
        folder: where the files go, created when absent; hand in a temporary one to publish it whole.
        derivation: how it was derived.
        now: the one clock of the run.
        transfer_syntax: 'explicit' (little endian), or lossless 'rle', 'jpeg_ls' or 'jpeg_2000'; does not change UIDs.

    Raises:
        BundleError: when the values cannot be stored without loss of range, or encoded without loss.
    """
    syntax = named_syntax(transfer_syntax)
    encoded = encode(volume, restored_hu)
    identifiers = repaired_identifiers(volume.source_headers, key=volume.key)
    pixel_digest = digest_of(image.stored.astype("<i4").tobytes() for image in encoded)
    origin = (pixel_digest, derivation.settings_digest, derivation.weights_digest)
    series_uid = derived_uid("series", identifiers.series, *origin)
    sop_uids = tuple(_instance_uid(volume, k, identifiers, series_uid) for k in range(len(encoded)))
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with quiet(), strict_writing():
        for k, image in enumerate(encoded):  # made anew: the UIDs want the digest of all before the first is written
            header = _header(volume, k, image, identifiers=identifiers, derivation=derivation, now=now)
            set_values(header, SeriesInstanceUID=series_uid, SOPInstanceUID=sop_uids[k], InstanceNumber=str(k + 1))
            path = folder / f"IM{k + 1:04d}.dcm"
            write_instance(header, path, stored=image.stored, syntax=syntax)
            paths.append(path)
        if syntax.encoder:
            check_encoded(paths, (image.stored for image in encoded), syntax=syntax)
    mapping = dict(identifiers.mapping)
    mapping[identifiers.series] = series_uid
    for k, sop_uid in enumerate(sop_uids):
        if volume.is_true_slice(k):
            mapping[identifiers.instances[volume.sources(k)[0]]] = sop_uid
    return DerivedSeries(
        series_uid=series_uid,
        sop_uids=sop_uids,
        uid_mapping=mapping,
        paths=tuple(paths),
        series_suffix=derivation.series_suffix,
    )


def is_restored(header: Dataset) -> bool:
    """Whether a network of ours made this image; a copy that was only made poorer for a trial is none."""
    with quiet():
        return any(
            text(item, "Manufacturer") == _MANUFACTURER
            and text(item, "ContributionDescription").partition(_BY_WEIGHTS)[2].strip()
            for item in header.get("ContributingEquipmentSequence", [])
        )


def _instance_uid(volume: Volume, k: int, identifiers: Identifiers, series_uid: str) -> str:
    """SOP Instance UID of slice k; one that is no true slice is told apart by its number."""
    sources = [identifiers.instances[n] for n in volume.sources(k)]
    return derived_uid("instance", series_uid, *sources, *([] if volume.is_true_slice(k) else [str(k)]))


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
    set_values(
        header,
        SOPClassUID=uid.CTImageStorage,
        StudyInstanceUID=identifiers.study,
        FrameOfReferenceUID=identifiers.frame_of_reference,
        Modality="CT",
        ImageType=["DERIVED", "SECONDARY", "AXIAL"],
        SeriesNumber=str(_series_number(source, derivation)),
        SeriesDescription=series_description(str(header.get("SeriesDescription", "")), derivation.series_suffix),
        InstanceCreationDate=date,
        InstanceCreationTime=time,
        SeriesDate=date,
        SeriesTime=time,
        ContentDate=date,
        ContentTime=time,
        DerivationDescription=_description(volume, k, derivation),
        SourceImageSequence=[
            _source_item(volume.source_headers[n], identifiers.instances[n], moved=not volume.is_true_slice(k))
            for n in volume.sources(k)
        ],
        BurnedInAnnotation="YES" if text(source, "BurnedInAnnotation") == "YES" else "NO",
        ContributingEquipmentSequence=[
            *header.get("ContributingEquipmentSequence", []),
            _equipment_item(derivation, now),
        ],
    )
    if volume.resampled:
        set_values(header, DerivationCodeSequence=[code("113085", "Spatial resampling")])
    _set_pixels(header, image)
    return header


def _description(volume: Volume, k: int, derivation: Derivation) -> str:
    """Derivation Description: the method, and what resampling did to this slice."""
    resampled = ""
    if volume.origins is not None:
        what = "at the place of one of the source" if volume.is_true_slice(k) else "interpolated linearly"
        slices = f"slices at {volume.spacing_mm[2]:.4g} mm by true positions, this one {what}"
        resampled = f"; {volume.origins.reason}: {slices}"
    return derivation.description[: 1024 - len(resampled)] + resampled


def _series_number(source: Dataset, derivation: Derivation) -> int:
    try:
        number = integer(source, "SeriesNumber") or 0
    except Unusable:
        number = 0
    return min(number + derivation.series_number_offset, _MAX_INTEGER_STRING)


def _source_item(source: Dataset, instance_uid: str, *, moved: bool) -> Dataset:
    """Image SOP Instance Reference of a source slice (PS3.3 C.7.6.1.1.4); `moved`: it does not lie where ours does."""
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
        SpatialLocationsPreserved="NO" if moved else "YES",
        PurposeOfReferenceCodeSequence=[code("121322", "Source image for image processing operation")],
    )
    return item


def _equipment_item(derivation: Derivation, now: datetime.datetime) -> Dataset:
    """Contributing Equipment (PS3.3 C.12.1.1.5): this software, and what decides its output."""
    item = Dataset()
    set_values(
        item,
        Manufacturer=_MANUFACTURER,
        ManufacturerModelName="CT enhancement MONAI bundle",
        SoftwareVersions=derivation.software_version[:64],
        ContributionDateTime=now.strftime("%Y%m%d%H%M%S.%f"),
        ContributionDescription=(
            f"settings sha256 {derivation.settings_digest}; {_BY_WEIGHTS}{derivation.weights_digest}"[:1024]
        ),
        PurposeOfReferenceCodeSequence=[code("109103", "Modifying Equipment")],
    )
    return item


def _set_pixels(header: Dataset, image: EncodedSlice) -> None:
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
        RescaleSlope=decimal_string(image.slope),
        RescaleType="HU",
    )
    if image.padding is not None:
        vr = "SS" if layout.signed else "US"  # PS3.3 C.7.5.1.1.2: as Pixel Representation says
        header.add_new("PixelPaddingValue", vr, image.padding[0])
        if image.padding[1] is not None:
            header.add_new("PixelPaddingRangeLimit", vr, image.padding[1])
