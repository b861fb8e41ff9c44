"""One file's header, read safely; multi-frame objects become one flat header per frame."""

import copy
import io
import zlib
from dataclasses import dataclass
from typing import BinaryIO

import pydicom
from pydicom import uid
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import _read_file_meta_info, data_element_generator
from pydicom.filewriter import write_file_meta_info

from bundle.dicom.elements import Unusable, integer, quiet, text
from bundle.dicom.uids import is_valid_uid

MAX_MATRIX = 8192  # rows or columns; CT detectors and reconstructions end at 4096
MAX_FRAMES = 20000
MAX_INFLATED_BYTES = 1 << 30
MAX_EXPANSION = 100  # of a deflated data set; CT gains 2 to 4
_CT_CLASSES = (uid.CTImageStorage, uid.EnhancedCTImageStorage, uid.LegacyConvertedEnhancedCTImageStorage)
_PIXEL_TAGS = (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10")
_FLOAT_TAGS = (b"\xe0\x7f\x08\x00", b"\x7f\xe0\x00\x08", b"\xe0\x7f\x09\x00", b"\x7f\xe0\x00\x09")


class NotDicom(Exception):
    """The bytes are no DICOM file."""


@dataclass(frozen=True, eq=False)
class Slice:
    """One image: the source it lies in, the frame within it (None: the file is one image), its flat header."""

    source: str
    frame: int | None
    header: Dataset


def read_header(stream: BinaryIO) -> FileDataset:
    """Read a data set up to its pixel data.

    Raises:
        NotDicom: when the bytes do not begin as DICOM does.
        Unusable: when they do, and yet cannot be read.
    """
    dataset, _ = _read(stream, pixels=False)
    return dataset


def read_whole(stream: BinaryIO) -> FileDataset:
    """Read a data set with its pixel data; raises as `read_header`."""
    dataset, _ = _read(stream, pixels=True)
    return dataset


def read_slices(stream: BinaryIO, source: str) -> list[Slice]:
    """Slices of one DICOM file, from its header alone.

    Raises:
        NotDicom: when it is no DICOM file.
        Unusable: when it is damaged; the message says how. `foreign` is set for what is no CT image at all.
    """
    dataset, position = _read(stream, pixels=False)
    try:
        frames = _checked_frames(stream, dataset, position)
    except Unusable as error:
        error.header = dataset
        raise
    if position is not None and text(dataset.file_meta, "TransferSyntaxUID") == uid.JPEGLSNearLossless:
        _state_loss(dataset, frames, bytes_left=stream.seek(0, io.SEEK_END) - position)
    multi = "PerFrameFunctionalGroupsSequence" in dataset
    _drop_bulk(dataset)
    if not multi:
        return [Slice(source, None, dataset)]
    return [Slice(source, frame, header) for frame, header in enumerate(_flat_headers(dataset, frames))]


def _checked_frames(stream: BinaryIO, dataset: FileDataset, position: int | None) -> int:
    """Number of frames of an object that is CT, of lawful size and whole."""
    check_is_no_directory(dataset)  # first: it lacks a Modality lawfully
    if position is not None and not text(dataset, "Modality") and not _at_pixels(stream, position):
        raise Unusable("file is truncated: it ends inside its header or lacks Modality")
    check_is_ct(dataset)
    if position is not None and not _at_pixels(stream, position):
        raise Unusable("pixel data are missing: the file is truncated or lacks PixelData")
    frames = integer(dataset, "NumberOfFrames") or 1
    size = check_matrix(dataset, frames=frames)
    if frames > 1 and "PerFrameFunctionalGroupsSequence" not in dataset:
        raise Unusable(f"NumberOfFrames is {frames} in an object that describes one frame only")
    if position is not None:
        _check_pixels(stream, dataset, position, size=size)
    return frames


def _sop_class(dataset: Dataset) -> str:
    meta = getattr(dataset, "file_meta", None) or Dataset()
    return text(dataset, "SOPClassUID") or text(meta, "MediaStorageSOPClassUID")


def _at_pixels(stream: BinaryIO, position: int) -> bool:
    stream.seek(position)
    return stream.read(4) in (*_PIXEL_TAGS, *_FLOAT_TAGS)


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


def check_matrix(dataset: Dataset, *, frames: int) -> int:
    """Bytes of one object's decoded pixels.

    Raises:
        Unusable: when Rows, Columns, BitsAllocated or NumberOfFrames are missing or beyond the limits.
    """
    rows, columns = integer(dataset, "Rows") or 0, integer(dataset, "Columns") or 0
    if not 0 < rows <= MAX_MATRIX or not 0 < columns <= MAX_MATRIX:
        raise Unusable(f"matrix of {rows} rows x {columns} columns is outside 1..{MAX_MATRIX}")
    if not 0 < frames <= MAX_FRAMES:
        raise Unusable(f"NumberOfFrames is {frames}, outside 1..{MAX_FRAMES}")
    return (
        rows
        * columns
        * frames
        * (integer(dataset, "BitsAllocated") or 0)
        // 8
        * (integer(dataset, "SamplesPerPixel") or 1)
    )


def _read(stream: BinaryIO, *, pixels: bool) -> tuple[FileDataset, int | None]:
    """The data set, and where its pixel data begin in `stream` (None: the stream was rewritten)."""
    head = _head(stream)
    # Without preamble pydicom has to be told; only where the bytes begin with a low group, or it reads any text.
    bare = head[128:132] != b"DICM"
    if bare and head[:2] not in (b"\x08\x00", b"\x02\x00"):
        raise NotDicom
    try:
        with quiet():
            stream.seek(0 if bare else 132)
            meta = _read_file_meta_info(stream)  # dcmread itself would inflate without any limit
            if meta.get("TransferSyntaxUID") == uid.DeflatedExplicitVRLittleEndian:
                return _read_deflated(stream, meta, pixels=pixels)
            stream.seek(0)
            dataset = pydicom.dcmread(stream, stop_before_pixels=True, force=bare)
            position = stream.tell()
            if pixels:
                _read_pixels(stream, dataset, position)
            return dataset, position
    except (RecursionError, MemoryError) as error:
        raise Unusable("header holds sequences nested too deep to read") from error
    except Unusable:
        raise
    except Exception as error:  # pydicom raises nearly anything on damaged bytes
        if bare:
            raise NotDicom from error
        raise Unusable("header is damaged and cannot be read") from error


def _head(stream: BinaryIO) -> bytes:
    stream.seek(0)
    head = stream.read(132)
    stream.seek(0)
    if len(head) < 132:
        raise NotDicom
    return head


def _read_pixels(stream: BinaryIO, dataset: FileDataset, position: int) -> None:
    """Add to a header the pixel data that begin at `position`, without reading the header again."""
    stream.seek(position)
    head = stream.read(6)
    if head[:4] in _PIXEL_TAGS:
        stream.seek(position)
        implicit = head[4:] not in (b"OB", b"OW", b"UN")  # no even length begins with these bytes
        element = next(data_element_generator(stream, implicit, head[:4] == _PIXEL_TAGS[0]))
        dataset[element.tag] = element


def _read_deflated(stream: BinaryIO, meta: FileMetaDataset, *, pixels: bool) -> tuple[FileDataset, int | None]:
    """Inflate within a limit (the data set may be a bomb), then read it as Explicit VR Little Endian."""
    stream.seek(132)
    meta_length = 12 + int(meta.get("FileMetaInformationGroupLength", 0))
    stream.seek(132 + meta_length)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    packed = stream.read()
    body = inflater.decompress(packed, min(MAX_INFLATED_BYTES, (16 << 20) + MAX_EXPANSION * len(packed)))
    if inflater.unconsumed_tail or not inflater.eof:
        raise Unusable("deflated data set is truncated or expands beyond the size limit")
    plain_meta = copy.deepcopy(meta)
    plain_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, False
    buffer.write(b"\0" * 128 + b"DICM")
    write_file_meta_info(buffer, plain_meta, enforce_standard=False)
    plain = io.BytesIO(buffer.getvalue() + body)
    inflated = pydicom.dcmread(plain, stop_before_pixels=not pixels)
    if not pixels:
        if not _at_pixels(plain, plain.tell()):
            raise Unusable("pixel data are missing")
        _check_pixels(plain, inflated, plain.tell() - 4, size=0)
    return inflated, None


def _check_pixels(stream: BinaryIO, dataset: FileDataset, position: int, *, size: int) -> None:
    """The header ends at pixel data, and the file holds as many bytes of them as the header promises."""
    stream.seek(position)
    tag = stream.read(4)
    if tag in _FLOAT_TAGS:
        raise Unusable("pixels are FloatPixelData, not integer stored values")
    syntax = text(dataset.file_meta, "TransferSyntaxUID")
    if is_valid_uid(syntax) and uid.UID(syntax).is_transfer_syntax and uid.UID(syntax).is_encapsulated:
        return
    big = tag == b"\x7f\xe0\x00\x10"
    head = stream.read(8)
    implicit = not head[:2].isupper()
    raw_length = head[:4] if implicit else head[4:]
    length = int.from_bytes(raw_length, "big" if big else "little")
    start = stream.tell() - (4 if implicit else 0)
    left = stream.seek(0, io.SEEK_END) - start
    if length != 0xFFFFFFFF and (left < length or length < size):
        raise Unusable(f"pixel data are truncated: {min(left, length)} bytes instead of {max(size, length)}")


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


def _flat_headers(dataset: FileDataset, frames: int) -> list[Dataset]:
    """One header per frame, as if each frame were a CT Image: the functional groups' attributes at top level."""
    with quiet():
        per_frame = list(dataset.PerFrameFunctionalGroupsSequence)
        shared = list(dataset.get("SharedFunctionalGroupsSequence", []))
    if len(per_frame) != frames:
        raise Unusable(f"NumberOfFrames is {frames}, but {len(per_frame)} frames are described")
    base = Dataset()
    for tag in dataset.keys():
        if tag.group != 0x5200 and tag not in _MULTI_FRAME_TAGS:
            base[tag] = dataset.get_item(tag)
    headers: list[Dataset] = []
    for number, groups in enumerate(per_frame, start=1):
        flat = FileDataset("", {}, file_meta=dataset.file_meta)
        flat.update({tag: base.get_item(tag) for tag in base.keys()})
        for item in [*shared, groups]:
            _merge_groups(flat, item)
        if "FrameType" in flat:
            flat.ImageType = flat.FrameType
        flat.ReferencedFrameNumber = number  # tells frames of one SOP instance apart
        headers.append(flat)
    return headers


def _merge_groups(flat: Dataset, groups: Dataset) -> None:
    for group in groups:
        if group.VR == "SQ" and len(group.value) == 1:
            for element in group.value[0]:
                flat[element.tag] = element


_MULTI_FRAME_TAGS = (0x00280008, 0x00209221, 0x00209222, 0x00209311, 0x00080008)
