"""Stored values of one image, exactly: one strict decoder per transfer syntax, checked before it is let loose.

No decoder may guess or fall through to a laxer one: measured, default plug-ins return an image of the right size
from a third of a JPEG-LS stream without a word. Decoders run in processes of their own (`workers`).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import generate_frames

from bundle.dicom import workers
from bundle.dicom.codecs import JPEG, JPEG_2000, JPEG_LS, RLE, Codec
from bundle.dicom.elements import Unusable, integer, quiet, text
from bundle.dicom.headers import check_matrix
from bundle.dicom.uids import is_valid_uid

NATIVE = frozenset(
    {
        uid.ImplicitVRLittleEndian,
        uid.ExplicitVRLittleEndian,
        uid.ExplicitVRBigEndian,
        uid.DeflatedExplicitVRLittleEndian,
    }
)
# Transfer syntax -> family; `codecs` has the strictest decoder of each family under fuzzing.
FAMILIES = {
    uid.RLELossless: RLE,
    uid.JPEGLossless: JPEG,
    uid.JPEGLosslessSV1: JPEG,
    uid.JPEGLSLossless: JPEG_LS,
    uid.JPEGLSNearLossless: JPEG_LS,
    uid.JPEG2000Lossless: JPEG_2000,
    uid.JPEG2000: JPEG_2000,
    uid.HTJ2KLossless: JPEG_2000,
    uid.HTJ2KLosslessRPCL: JPEG_2000,
    uid.HTJ2K: JPEG_2000,
}
_FAMILY_OF = {str(syntax): family for syntax, family in FAMILIES.items()}


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
    if syntax not in NATIVE and syntax not in _FAMILY_OF:
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


def is_native(dataset: Dataset) -> bool:
    """Whether its pixel data are not compressed (a deflated data set is inflated as a whole)."""
    return transfer_syntax(dataset) in NATIVE


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


class Image:
    """One image of a data set that was read with its pixel data: everything checked, nothing decoded yet.

    Args:
        dataset: read with its pixel data.
        frame: number of the frame in a multi-frame object, from 0; None when the object is one image.
        frames: the object's compressed frames, when the caller has split them already.

    Raises:
        Unusable: when the pixel data are missing, truncated, or contradict the header.
    """

    def __init__(self, dataset: FileDataset, *, frame: int | None = None, frames: list[bytes] | None = None) -> None:
        self.layout = pixel_layout(dataset)
        if "PixelData" not in dataset:
            raise Unusable("pixel data are missing")
        self.stream: bytes | None = None
        if is_native(dataset):
            self._words = _native(dataset, self.layout, frame)
            return
        self.family = _FAMILY_OF[transfer_syntax(dataset)]
        frames = compressed_frames(dataset) if frames is None else frames
        if (frame or 0) >= len(frames):
            raise Unusable("pixel data are damaged: frames are missing")
        self.stream = frames[frame or 0]
        _check_stream(self.stream, self.layout, self.family)

    def values(self) -> np.ndarray:
        """Stored values (rows, columns) of an image that is not compressed."""
        assert self.stream is None, "native"
        return _values(self._words, self.layout)

    def job(self, index: int) -> workers.Job:
        """The work of decoding a compressed image."""
        assert self.stream is not None, "compressed"
        layout = self.layout
        codec = Codec(family=self.family, rows=layout.rows, columns=layout.columns, allocated=layout.allocated)
        return workers.Job(index, self.stream, codec)

    def decoded(self, words: memoryview) -> np.ndarray:
        """Stored values (rows, columns) of the words that its job gave."""
        count = self.layout.rows * self.layout.columns
        item = len(words) // count
        frame = np.frombuffer(words, dtype=f"<u{item}", count=count)
        return _values(frame.reshape(self.layout.rows, self.layout.columns), self.layout)


def decode(image: Image) -> np.ndarray:
    """Stored values (rows, columns) of one image, without the bits that are not theirs.

    Raises:
        Unusable: when it cannot be decoded.
    """
    ((_, values),) = decode_all([image], count=1)
    if isinstance(values, Unusable):
        raise values
    return values


def decode_all(images: Iterable[Image], *, count: int) -> Iterator[tuple[int, np.ndarray | Unusable]]:
    """Stored values of images, each with its number, or what is wrong with it; in the order in which they are ready.

    Args:
        images: taken one by one, never more at a time than there are workers and one.
        count: how many there are.
    """
    numbered = enumerate(images)
    waiting: dict[int, Image] = {}
    native: list[tuple[int, Image]] = []  # one at most: it ends the workers' turn

    def jobs() -> Iterator[workers.Job]:
        for index, image in numbered:
            if image.stream is None:
                native.append((index, image))
                return
            waiting[index] = image
            yield image.job(index)

    while True:
        for outcome in workers.run(jobs(), count=count):
            image = waiting.pop(outcome.job.index)
            values = Unusable(outcome.problem) if outcome.words is None else image.decoded(outcome.words)
            yield outcome.job.index, values
        if not native:
            return
        index, image = native.pop()
        yield index, image.values()


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


def _native(dataset: FileDataset, layout: PixelLayout, frame: int | None) -> np.ndarray:
    with quiet():
        data = dataset.PixelData
    count = layout.rows * layout.columns
    size = count * layout.allocated // 8
    start = (frame or 0) * size
    if len(data) < start + size:
        raise Unusable(f"pixel data are truncated: {len(data)} bytes instead of {start + size}")
    order = "<" if dataset.original_encoding[1] is not False else ">"
    words = np.frombuffer(data, dtype=f"{order}u{layout.allocated // 8}", count=count, offset=start)
    return words.reshape(layout.rows, layout.columns)


def _values(words: np.ndarray, layout: PixelLayout) -> np.ndarray:
    """Words to stored values: shift to High Bit, cut to Bits Stored, extend the sign."""
    if layout.high_bit <= 15 and words.dtype.itemsize <= 2:
        return _narrow_values(words, layout)
    wide: np.ndarray = words.astype(np.int64 if layout.stored > 16 else np.int32)
    shift = layout.high_bit + 1 - layout.stored
    values = (wide >> shift) & ((1 << layout.stored) - 1)
    if layout.signed:
        sign = 1 << (layout.stored - 1)
        values = (values ^ sign) - sign
    return values.astype(layout.dtype)


def _narrow_values(words: np.ndarray, layout: PixelLayout) -> np.ndarray:
    """The same in words of 16 bits: the stored bits are pushed to the top, then back, with their sign if signed."""
    values = words.astype("=u2")
    up, down = 15 - layout.high_bit, 16 - layout.stored
    if up > 0:
        values <<= np.uint16(up)
    signed: np.ndarray = values.view(layout.dtype)
    if down:
        signed >>= layout.dtype.type(down)
    return signed


def _check_stream(stream: bytes, layout: PixelLayout, family: str) -> None:
    """The stream ends where it should and is an image of the header's size and depth."""
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
