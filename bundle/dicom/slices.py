"""The slices of one file, from its header alone: what it is, and that it holds the pixels its header promises."""

import io
from dataclasses import dataclass, replace
from typing import BinaryIO

from pydicom import uid
from pydicom.dataset import Dataset, FileDataset

from bundle.dicom.elements import Unusable, integer, text
from bundle.dicom.frames import flat_headers, is_multi_frame
from bundle.dicom.headers import read_to_pixels
from bundle.dicom.layouts import check_matrix
from bundle.dicom.pixel_place import UNDEFINED, PixelPlace, at_pixels, find_pixels
from bundle.dicom.sources import identity
from bundle.dicom.uids import is_valid_uid

_CT_CLASSES = (uid.CTImageStorage, uid.EnhancedCTImageStorage, uid.LegacyConvertedEnhancedCTImageStorage)


@dataclass(frozen=True, eq=False)
class Slice:
    """One image.

    Attributes:
        source: where it lies.
        frame: its number within the source; None when that is one image.
        header: its flat header, without pixel data and private elements.
        place: of the source's pixel data; None where only a parser finds them.
    """

    source: str
    frame: int | None
    header: Dataset
    place: PixelPlace | None = None


def read_slices(stream: BinaryIO, source: str) -> list[Slice]:
    """Slices of one DICOM file, from its header alone.

    Raises:
        NotDicom: when it is no DICOM file.
        Unusable: when it is damaged; the message says how. `foreign` is set for what is no CT image at all.
    """
    dataset, position = read_to_pixels(stream)
    try:
        frames, place = _checked_frames(stream, dataset, position)
    except Unusable as error:
        error.header = dataset
        raise
    if position is not None and text(dataset.file_meta, "TransferSyntaxUID") == uid.JPEGLSNearLossless:
        _state_loss(dataset, frames, bytes_left=stream.seek(0, io.SEEK_END) - position)
    multi = is_multi_frame(dataset)
    if place is not None:
        known = not (multi and place.length == UNDEFINED)  # compressed frames are told apart by a parser
        place = replace(place, identity=identity(stream)) if known else None
    _drop_bulk(dataset)
    if not multi:
        return [Slice(source, None, dataset, place)]
    headers = flat_headers(dataset, frames)
    return [Slice(source, frame, header, place) for frame, header in enumerate(headers)]


def _checked_frames(stream: BinaryIO, dataset: FileDataset, position: int | None) -> tuple[int, PixelPlace | None]:
    """Number of frames of an object that is CT, of lawful size and whole; and where its pixel data lie."""
    check_is_no_directory(dataset)  # first: it lacks a Modality lawfully
    if position is not None and not text(dataset, "Modality") and not at_pixels(stream, position):
        raise Unusable("file is truncated: it ends inside its header or lacks Modality")
    check_is_ct(dataset)
    if position is not None and not at_pixels(stream, position):
        raise Unusable("pixel data are missing: the file is truncated or lacks PixelData")
    frames = integer(dataset, "NumberOfFrames") or 1
    size = check_matrix(dataset, frames=frames)
    if frames > 1 and not is_multi_frame(dataset):
        raise Unusable(f"NumberOfFrames is {frames} in an object that describes one frame only")
    return frames, None if position is None else find_pixels(stream, dataset, position, size=size)


def _sop_class(dataset: Dataset) -> str:
    meta = getattr(dataset, "file_meta", None) or Dataset()
    return text(dataset, "SOPClassUID") or text(meta, "MediaStorageSOPClassUID")


def check_is_no_directory(dataset: Dataset) -> None:
    """Refuse a DICOMDIR, which every exported disc has at its top.

    Raises:
        Unusable: with `foreign` set.
    """
    if _sop_class(dataset) == uid.MediaStorageDirectoryStorage:
        raise Unusable("is a DICOMDIR, a table of contents without images", foreign=True)


def check_is_ct(dataset: Dataset) -> None:
    """Refuse what is no CT image: other modalities, structure sets, secondary captures.

    Raises:
        Unusable: with `foreign` set.
    """
    sop_class = _sop_class(dataset)
    modality = text(dataset, "Modality")
    if modality != "CT":
        shown = modality if modality.isalnum() and len(modality) <= 16 else "not given"
        raise Unusable(f"Modality is {shown}, not CT", foreign=True)
    if is_valid_uid(sop_class) and sop_class not in _CT_CLASSES:
        name = uid.UID(sop_class).name
        shown = name if name != sop_class else "a private one"
        raise Unusable(f"SOP class is {shown}, not a CT image", foreign=True)


def _state_loss(dataset: Dataset, frames: int, *, bytes_left: int) -> None:
    """Lossy compression as PS3.3 C.7.6.1.1.5 wants it said, of a file whose syntax says it and whose header may not.

    Once the pixels travel in another syntax nothing else would tell.
    """
    dataset.LossyImageCompression = "01"
    if not text(dataset, "LossyImageCompressionRatio") or not text(dataset, "LossyImageCompressionMethod"):
        ratio = max(1.0, check_matrix(dataset, frames=frames) / max(bytes_left, 1))
        dataset.LossyImageCompressionRatio = f"{ratio:.2f}"
        dataset.LossyImageCompressionMethod = "ISO_14495_1"


def _drop_bulk(dataset: Dataset) -> None:
    """Drop private elements (bulky, and never copied to a derived series) so that thousands of headers fit."""
    for tag in [tag for tag in dataset.keys() if tag.is_private]:
        del dataset[tag]
