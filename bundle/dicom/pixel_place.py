"""Where the pixel data of a file lie, so that they are read later without another look at the header before them."""

import io
from dataclasses import dataclass
from typing import BinaryIO

from pydicom import uid
from pydicom.dataset import Dataset

from bundle.dicom.elements import Unusable, text
from bundle.dicom.uids import is_valid_uid

PIXEL_TAGS = (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10")  # little, big endian
_FLOAT_TAGS = (b"\xe0\x7f\x08\x00", b"\x7f\xe0\x00\x08", b"\xe0\x7f\x09\x00", b"\x7f\xe0\x00\x09")
_LONG_VRS = (b"OB", b"OW", b"UN")  # no even length begins with these bytes, so a header without VR is told apart
UNDEFINED = 0xFFFFFFFF


@dataclass(frozen=True)
class PixelPlace:
    """A lawful place of pixel data.

    Attributes:
        start: offset of the value in its file.
        length: of the value, bytes; UNDEFINED for compressed fragments.
        big_endian: order of the bytes in its words.
        identity: of the file when it was looked at (`sources.identity`).
    """

    start: int
    length: int
    big_endian: bool
    identity: tuple[int, ...] | None = None


def at_pixels(stream: BinaryIO, position: int) -> bool:
    """Whether pixel data of any kind begin at `position`."""
    stream.seek(position)
    return stream.read(4) in (*PIXEL_TAGS, *_FLOAT_TAGS)


def is_implicit(stream: BinaryIO, position: int) -> bool:
    """Whether the pixel data that begin at `position` name no VR."""
    stream.seek(position + 4)
    return stream.read(2) not in _LONG_VRS


def find_pixels(stream: BinaryIO, dataset: Dataset, position: int, *, size: int) -> PixelPlace | None:
    """The place of pixel data that begin at `position`, after a check that the file holds what its header promises.

    Args:
        stream: of the file.
        dataset: its header.
        position: where the header ends.
        size: bytes of the pixels, were they not compressed.

    Returns:
        None for what only a parser can make sense of.

    Raises:
        Unusable: when they are no integers, or truncated.
    """
    stream.seek(position)
    tag = stream.read(4)
    if tag in _FLOAT_TAGS:
        raise Unusable("pixels are FloatPixelData, not integer stored values")
    big = tag == PIXEL_TAGS[1]
    head = stream.read(8)
    raw, start = (head[:4], position + 8) if is_implicit(stream, position) else (head[4:], position + 12)
    length = int.from_bytes(raw, "big" if big else "little")
    place = PixelPlace(start, length, big)
    syntax = text(dataset.file_meta, "TransferSyntaxUID")
    if is_valid_uid(syntax) and uid.UID(syntax).is_transfer_syntax and uid.UID(syntax).is_encapsulated:
        return place if length == UNDEFINED else None
    if length == UNDEFINED:
        return None
    left = stream.seek(0, io.SEEK_END) - start
    if left < length or length < size:
        raise Unusable(f"pixel data are truncated: {min(left, length)} bytes instead of {max(size, length)}")
    return place
