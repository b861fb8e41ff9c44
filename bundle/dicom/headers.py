"""One file's data set, read safely: within limits, without pydicom's warnings, up to its pixel data or with them."""

import copy
import io
import zlib
from typing import BinaryIO

import pydicom
from pydicom import uid
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import _read_file_meta_info, data_element_generator
from pydicom.filewriter import write_file_meta_info

from bundle.dicom.elements import Unusable, quiet
from bundle.dicom.pixel_place import PIXEL_TAGS, at_pixels, find_pixels, is_implicit

MAX_INFLATED_BYTES = 1 << 30
MAX_EXPANSION = 100  # of a deflated data set; CT gains 2 to 4
_HEAD_BYTES = 64 << 10  # most headers of single images end within
_DEFLATED = uid.DeflatedExplicitVRLittleEndian.encode()


class NotDicom(Exception):
    """The bytes are no DICOM file."""


def read_header(stream: BinaryIO) -> FileDataset:
    """Read a data set up to its pixel data.

    Raises:
        NotDicom: when the bytes do not begin as DICOM does.
        Unusable: when they do, and yet cannot be read.
    """
    dataset, _ = read_to_pixels(stream)
    return dataset


def read_to_pixels(stream: BinaryIO) -> tuple[FileDataset, int | None]:
    """The same, and where its pixel data begin in `stream` (None: the data set is deflated; they were checked)."""
    return _read(stream, pixels=False)


def read_whole(stream: BinaryIO) -> FileDataset:
    """Read a data set with its pixel data; raises as `read_header`."""
    dataset, _ = _read(stream, pixels=True)
    return dataset


def _read(stream: BinaryIO, *, pixels: bool) -> tuple[FileDataset, int | None]:
    head = _head(stream)
    # Without preamble pydicom has to be told; only where the bytes begin with a low group, or it reads any text.
    bare = head[128:132] != b"DICM"
    if bare and head[:2] not in (b"\x08\x00", b"\x02\x00"):
        raise NotDicom
    try:
        with quiet():
            found = None if bare or pixels else _read_short(head)
            if found is not None:
                return found
            stream.seek(0 if bare else 132)
            meta = _read_file_meta_info(stream)  # dcmread itself would inflate without any limit
            if meta.get("TransferSyntaxUID") == uid.DeflatedExplicitVRLittleEndian:
                return _read_deflated(stream, meta, pixels=pixels)
            stream.seek(0)
            dataset = pydicom.dcmread(stream, stop_before_pixels=True, force=bare)
            position = stream.tell()
            if pixels:
                _read_pixels(stream, dataset, position)
            dataset.buffer = None
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
    head = stream.read(_HEAD_BYTES)
    stream.seek(0)
    if len(head) < 132:
        raise NotDicom
    return head


def _read_short(head: bytes) -> tuple[FileDataset, int] | None:
    """A header that ends within the first bytes, parsed in memory, twice as fast; None when this one is not such.

    Parsing stops at the pixel data only where everything before them was there.
    """
    if _DEFLATED in head:
        return None
    stream = io.BytesIO(head)
    try:
        dataset = pydicom.dcmread(stream, stop_before_pixels=True)
    except Exception:  # cut off by us, or damaged: the long way tells
        return None
    position = stream.tell()
    if not at_pixels(stream, position):
        return None
    dataset.buffer = None  # would keep the head
    return dataset, position


def _read_pixels(stream: BinaryIO, dataset: FileDataset, position: int) -> None:
    """Add to a header the pixel data that begin at `position`, without reading the header again."""
    stream.seek(position)
    tag = stream.read(4)
    if tag in PIXEL_TAGS:
        implicit = is_implicit(stream, position)
        stream.seek(position)
        element = next(data_element_generator(stream, implicit, tag == PIXEL_TAGS[0]))
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
    inflated.buffer = None
    if not pixels:
        position = plain.tell()
        if not at_pixels(plain, position):
            raise Unusable("pixel data are missing")
        find_pixels(plain, inflated, position, size=0)
    return inflated, None
