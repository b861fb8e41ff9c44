"""Compressed frames before any decoder sees them: taken out of their fragments, and checked against the header."""

from pydicom.dataset import FileDataset
from pydicom.encaps import generate_frames

from bundle.dicom.codecs import JPEG_2000, RLE
from bundle.dicom.elements import Unusable, integer, quiet
from bundle.dicom.layouts import PixelLayout

_ITEM, _DELIMITER = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"


def frame_of_fragments(value: bytes) -> bytes:
    """The one frame in encapsulated pixel data (PS3.5 A.4), a value of undefined length to the end of the file.

    Raises:
        Unusable: when it is not a table of offsets, fragments, and a delimiter.
    """
    parts = []
    at = 0
    while value[at : at + 4] == _ITEM:
        start = at + 8
        at = start + int.from_bytes(value[at + 4 : start], "little")
        parts.append(value[start:at])
    if value[at : at + 4] != _DELIMITER or len(parts) < 2:
        raise Unusable("pixel data are damaged: their fragments cannot be told apart")
    return parts[1] if len(parts) == 2 else b"".join(parts[1:])


def compressed_frames(dataset: FileDataset) -> list[bytes]:
    """The compressed frames of an object.

    Raises:
        Unusable: when its fragments cannot be told apart.
    """
    try:
        with quiet():
            count = integer(dataset, "NumberOfFrames") or 1
            return list(generate_frames(dataset.PixelData, number_of_frames=count))
    except Unusable:
        raise
    except Exception as error:  # pydicom raises nearly anything on damaged bytes
        raise Unusable("pixel data are damaged: their fragments cannot be told apart") from error


def check_stream(stream: bytes, layout: PixelLayout, family: str) -> None:
    """The stream ends where it should and is an image of the header's size and depth.

    Raises:
        Unusable: when not.
    """
    if family == RLE:
        segments = int.from_bytes(stream[:4], "little")
        if segments != layout.allocated // 8:
            raise Unusable("pixel data are damaged: RLE segments do not match BitsAllocated")
        return
    if not stream.rstrip(b"\0").endswith(b"\xff\xd9"):
        raise Unusable(f"pixel data are truncated: the {family} stream has no end marker")
    rows, columns, precision, components = _codestream_size(stream) if family == JPEG_2000 else _frame_size(stream)
    if (rows, columns, components) != (layout.rows, layout.columns, 1):
        raise Unusable(f"pixel data are {rows} rows x {columns} columns x {components}, unlike the header")
    if not layout.stored <= precision <= layout.allocated:
        raise Unusable(f"pixel data have {precision} bits, where the header says {layout.stored}")


def _codestream_size(stream: bytes) -> tuple[int, int, int, int]:
    """Rows, columns, precision and components of a JPEG 2000 codestream (SIZ, ISO 15444-1 A.5.1)."""
    if stream[:4] != b"\xff\x4f\xff\x51" or len(stream) < 46:
        raise Unusable("pixel data are damaged: no JPEG 2000 codestream")
    x1, y1, x0, y0 = (int.from_bytes(stream[at : at + 4], "big") for at in (8, 12, 16, 20))
    return y1 - y0, x1 - x0, (stream[42] & 0x7F) + 1, int.from_bytes(stream[40:42], "big")


def _frame_size(stream: bytes) -> tuple[int, int, int, int]:
    """Rows, columns, precision and components of a JPEG or JPEG-LS stream (its frame header, ISO 10918-1 B.2.2)."""
    at = 2 if stream[:2] == b"\xff\xd8" else len(stream)
    while at + 10 < len(stream) and stream[at] == 0xFF:
        marker = stream[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:
            head = stream[at + 4 : at + 10]
            return int.from_bytes(head[1:3], "big"), int.from_bytes(head[3:5], "big"), head[0], head[5]
        at += 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
    raise Unusable("pixel data are damaged: no JPEG frame header")
