"""How stored values lie in the words of an image, and in which transfer syntax, by its header."""

from dataclasses import dataclass

import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset

from bundle.dicom.codecs import JPEG, JPEG_2000, JPEG_LS, RLE
from bundle.dicom.elements import Unusable, integer, text
from bundle.dicom.uids import is_valid_uid

MAX_MATRIX = 8192  # rows or columns; CT detectors and reconstructions end at 4096
MAX_FRAMES = 20000
NATIVE = frozenset(
    {
        uid.ImplicitVRLittleEndian,
        uid.ExplicitVRLittleEndian,
        uid.ExplicitVRBigEndian,
        uid.DeflatedExplicitVRLittleEndian,
    }
)
# Transfer syntax -> family; `codecs` has the strictest decoder of each family under fuzzing.
_FAMILIES = {
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
FAMILY_OF = {str(syntax): family for syntax, family in _FAMILIES.items()}


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

    @property
    def frame_bytes(self) -> int:
        """Of one uncompressed image."""
        return self.rows * self.columns * self.allocated // 8

    def values(self, words: np.ndarray, out: np.ndarray) -> None:
        """Write the stored values of words into `out`: shifted to High Bit, cut to Bits Stored, the sign extended.

        Args:
            words: unsigned integers (rows, columns).
            out: (rows, columns), of a type that holds every value of `dtype`.
        """
        if self.high_bit <= 15 and words.itemsize <= 2 and out.dtype == self.dtype:
            # In words of 16 bits: the stored bits are pushed to the top, then back, with their sign if signed.
            bits = out.view(np.uint16)
            np.copyto(bits, words)
            up, down = 15 - self.high_bit, 16 - self.stored
            if up:
                np.left_shift(bits, np.uint16(up), out=bits)
            if down:
                np.right_shift(out, out.dtype.type(down), out=out)
            return
        wide: np.ndarray = words.astype(np.int64 if self.stored > 16 else np.int32)
        values = (wide >> (self.high_bit + 1 - self.stored)) & ((1 << self.stored) - 1)
        if self.signed:
            sign = 1 << (self.stored - 1)
            values = (values ^ sign) - sign
        out[...] = values


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
    if syntax not in NATIVE and syntax not in FAMILY_OF:
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


def check_matrix(header: Dataset, *, frames: int) -> int:
    """Bytes of one object's decoded pixels.

    Raises:
        Unusable: when Rows, Columns, BitsAllocated or NumberOfFrames are missing or beyond the limits.
    """
    rows, columns = integer(header, "Rows") or 0, integer(header, "Columns") or 0
    if not 0 < rows <= MAX_MATRIX or not 0 < columns <= MAX_MATRIX:
        raise Unusable(f"matrix of {rows} rows x {columns} columns is outside 1..{MAX_MATRIX}")
    if not 0 < frames <= MAX_FRAMES:
        raise Unusable(f"NumberOfFrames is {frames}, outside 1..{MAX_FRAMES}")
    bits = (integer(header, "BitsAllocated") or 0) * (integer(header, "SamplesPerPixel") or 1)
    return rows * columns * frames * bits // 8


def transfer_syntax(header: Dataset) -> str:
    """Transfer syntax UID of a data set; files without a meta group are Implicit VR Little Endian."""
    meta = getattr(header, "file_meta", None)
    value = text(meta, "TransferSyntaxUID") if meta is not None else ""
    return value or str(uid.ImplicitVRLittleEndian)


def is_native(header: Dataset) -> bool:
    """Whether its pixel data are not compressed (a deflated data set is inflated as a whole)."""
    return transfer_syntax(header) in NATIVE


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
