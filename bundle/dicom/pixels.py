"""Stored values of one image, exactly: one strict decoder per transfer syntax, checked before it is let loose.

No decoder may guess or fall through to a laxer one: measured, default plug-ins return an image of the right size
from a third of a JPEG-LS stream without a word.
"""

from dataclasses import dataclass

import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import get_frame
from pydicom.pixels import get_decoder

from bundle.dicom.elements import Unusable, integer, quiet, text
from bundle.dicom.headers import check_matrix
from bundle.dicom.uids import is_valid_uid

_JPEG, _JPEG_LS, _JPEG_2000, _RLE = "JPEG", "JPEG-LS", "JPEG 2000", "RLE"
NATIVE = frozenset(
    {
        uid.ImplicitVRLittleEndian,
        uid.ExplicitVRLittleEndian,
        uid.ExplicitVRBigEndian,
        uid.DeflatedExplicitVRLittleEndian,
    }
)
# Transfer syntax -> (family, pydicom's name of the decoder): the strictest of each family under fuzzing.
DECODERS = {
    uid.RLELossless: (_RLE, "pylibjpeg"),
    uid.JPEGLossless: (_JPEG, "gdcm"),
    uid.JPEGLosslessSV1: (_JPEG, "gdcm"),
    uid.JPEGLSLossless: (_JPEG_LS, "pyjpegls"),
    uid.JPEGLSNearLossless: (_JPEG_LS, "pyjpegls"),
    uid.JPEG2000Lossless: (_JPEG_2000, "pylibjpeg"),
    uid.JPEG2000: (_JPEG_2000, "pylibjpeg"),
    uid.HTJ2KLossless: (_JPEG_2000, "pylibjpeg"),
    uid.HTJ2KLosslessRPCL: (_JPEG_2000, "pylibjpeg"),
    uid.HTJ2K: (_JPEG_2000, "pylibjpeg"),
}
_DECODER_OF = {str(syntax): decoder for syntax, decoder in DECODERS.items()}


@dataclass(frozen=True)
class PixelLayout:
    """How stored values lie in words (PS3.5 section 8.1.1)."""

    rows: int
    columns: int
    allocated: int
    stored: int
    high_bit: int
    signed: bool

    @property
    def dtype(self) -> np.dtype:
        """The smallest integer type that holds every stored value."""
        if self.stored > 16:
            return np.dtype(np.int32 if self.signed else np.int64)
        return np.dtype(np.int16 if self.signed else np.uint16)


def pixel_layout(header: Dataset) -> PixelLayout:
    """How the stored values of `header`'s image lie in words.

    Raises:
        Unusable: when it is no single-channel integer image that a volume of HU can be read from.
    """
    photometric = text(header, "PhotometricInterpretation")
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        known = photometric in ("RGB", "PALETTE COLOR") or photometric.startswith("YBR")
        raise Unusable(f"PhotometricInterpretation is {photometric if known else 'unknown'}, not MONOCHROME1 or 2")
    if integer(header, "SamplesPerPixel") != 1:
        raise Unusable("SamplesPerPixel is not 1")
    check_matrix(header, frames=1)
    allocated, stored = integer(header, "BitsAllocated"), integer(header, "BitsStored")
    if allocated not in (16, 32):
        raise Unusable(f"BitsAllocated is {allocated}; a CT image has 16 (8-bit copies have lost their HU)")
    if stored is None or not 8 < stored <= allocated:
        raise Unusable(f"BitsStored is {stored}, which does not fit BitsAllocated {allocated}")
    high = integer(header, "HighBit")
    high = stored - 1 if high is None else high
    if not stored - 1 <= high < allocated:
        raise Unusable(f"HighBit is {high}, which does not fit BitsStored {stored}")
    representation = integer(header, "PixelRepresentation")
    if representation not in (0, 1):
        raise Unusable("PixelRepresentation is neither 0 nor 1")
    syntax = transfer_syntax(header)
    if syntax not in NATIVE and syntax not in _DECODER_OF:
        name = uid.UID(syntax).name if is_valid_uid(syntax) else ""
        name = name if name and name != syntax else "a private or invalid one"  # a name that is no name is a UID
        raise Unusable(f"transfer syntax is {name}, which has no exact decoder here", hint="transcode the series")
    return PixelLayout(
        rows=integer(header, "Rows") or 0,
        columns=integer(header, "Columns") or 0,
        allocated=allocated,
        stored=stored,
        high_bit=high,
        signed=representation == 1,
    )


def transfer_syntax(header: Dataset) -> str:
    """Transfer syntax UID of a data set; files without a meta group are Implicit VR Little Endian."""
    meta = getattr(header, "file_meta", None)
    value = text(meta, "TransferSyntaxUID") if meta is not None else ""
    return value or str(uid.ImplicitVRLittleEndian)


def padding_range(header: Dataset) -> tuple[int, int | None] | None:
    """Pixel Padding Value and Range Limit (PS3.3 C.7.5.1.1.2) as stored values; None without, or unreadable.

    Files mix up the signed and unsigned VR of these elements, so they are taken modulo the word.
    """
    layout = pixel_layout(header)

    def as_stored(value: int) -> int:
        value &= (1 << layout.allocated) - 1
        return value - (1 << layout.allocated) if layout.signed and value >> (layout.allocated - 1) else value

    try:
        value, limit = integer(header, "PixelPaddingValue"), integer(header, "PixelPaddingRangeLimit")
    except Unusable:
        return None
    return None if value is None else (as_stored(value), None if limit is None else as_stored(limit))


def decode(dataset: FileDataset, *, frame: int | None = None) -> np.ndarray:
    """Stored values (rows, columns) of one image, without the bits that are not theirs.

    Args:
        dataset: read with its pixel data.
        frame: number of the frame in a multi-frame object, from 0; None when the object is one image.

    Raises:
        Unusable: when the pixel data are missing, truncated, damaged or contradict the header.
    """
    layout = pixel_layout(dataset)
    if "PixelData" not in dataset:
        raise Unusable("pixel data are missing")
    with quiet():
        syntax = transfer_syntax(dataset)
        words = _native(dataset, layout, frame) if syntax in NATIVE else _decoded(dataset, layout, syntax, frame)
    return _values(words, layout)


def _native(dataset: FileDataset, layout: PixelLayout, frame: int | None) -> np.ndarray:
    data = dataset.PixelData
    count = layout.rows * layout.columns
    size = count * layout.allocated // 8
    start = (frame or 0) * size
    if len(data) < start + size:
        raise Unusable(f"pixel data are truncated: {len(data)} bytes instead of {start + size}")
    order = "<" if dataset.original_encoding[1] is not False else ">"
    words = np.frombuffer(data, dtype=f"{order}u{layout.allocated // 8}", count=count, offset=start)
    return words.reshape(layout.rows, layout.columns)


def _decoded(dataset: FileDataset, layout: PixelLayout, syntax: str, frame: int | None) -> np.ndarray:
    family, plugin = _DECODER_OF[syntax]
    frames = integer(dataset, "NumberOfFrames") or 1
    try:
        _check_stream(get_frame(dataset.PixelData, frame or 0, number_of_frames=frames), layout, family)
        decoder = get_decoder(uid.UID(syntax))
        data, _ = decoder.as_buffer(dataset, index=frame or 0, decoding_plugin=plugin)
    except Unusable:
        raise
    except BaseException as error:  # each decoder has its own kinds; a panic in Rust is no Exception
        if not isinstance(error, Exception) and type(error).__module__ != "pyo3_runtime":
            raise
        raise Unusable(f"pixel data are damaged: the {family} stream cannot be decoded") from error
    count = layout.rows * layout.columns
    item = len(data) // count
    if item not in (1, 2, 4) or len(data) - item * count not in (0, 1):
        raise Unusable(
            f"pixel data are damaged: the {family} stream holds another number of pixels than the header says"
        )
    return np.frombuffer(data, dtype=f"<u{item}", count=count).reshape(layout.rows, layout.columns)


def _values(words: np.ndarray, layout: PixelLayout) -> np.ndarray:
    """Words to stored values: shift to High Bit, cut to Bits Stored, extend the sign."""
    wide: np.ndarray = words.astype(np.int64 if layout.stored > 16 else np.int32)
    shift = layout.high_bit + 1 - layout.stored
    values = (wide >> shift) & ((1 << layout.stored) - 1)
    if layout.signed:
        sign = 1 << (layout.stored - 1)
        values = (values ^ sign) - sign
    return values.astype(layout.dtype)


def _check_stream(stream: bytes, layout: PixelLayout, family: str) -> None:
    """The stream ends where it should and is an image of the header's size and depth."""
    if family == _RLE:
        segments = int.from_bytes(stream[:4], "little")
        if segments != layout.allocated // 8:
            raise Unusable("pixel data are damaged: RLE segments do not match BitsAllocated")
        return
    if not stream.rstrip(b"\0").endswith(b"\xff\xd9"):
        raise Unusable(f"pixel data are truncated: the {family} stream has no end marker")
    rows, columns, precision, components = _codestream_size(stream) if family == _JPEG_2000 else _frame_size(stream)
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
