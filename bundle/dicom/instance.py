"""One instance as a file: its meta group, strict values, and the transfer syntax its pixels travel in."""

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom import config, uid
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset

from bundle.dicom.elements import Unusable
from bundle.dicom.headers import NotDicom, read_whole
from bundle.dicom.pixels import Image, decode_all, image_of
from bundle.dicom.uids import derived_uid
from bundle.errors import BundleError

IMPLEMENTATION_CLASS_UID = derived_uid("ct-enhance", "implementation class")
IMPLEMENTATION_VERSION_NAME = "CT_ENHANCE"
_CHECKED_AT_ONCE = 64  # slices in memory


@dataclass(frozen=True)
class Syntax:
    """A lossless transfer syntax, and pydicom's name of its encoder; "" where none is needed."""

    uid: uid.UID
    encoder: str = ""


SYNTAXES = {
    "explicit": Syntax(uid.ExplicitVRLittleEndian),
    "rle": Syntax(uid.RLELossless, "pylibjpeg"),
    "jpeg_ls": Syntax(uid.JPEGLSLossless, "pyjpegls"),
    "jpeg_2000": Syntax(uid.JPEG2000Lossless, "pylibjpeg"),
}


def named_syntax(name: str) -> Syntax:
    """The transfer syntax called `name`.

    Raises:
        BundleError: when it is none of `SYNTAXES`.
    """
    if name not in SYNTAXES:
        raise BundleError(f"transfer_syntax must be one of {', '.join(SYNTAXES)}, not {name}")
    return SYNTAXES[name]


def write_instance(header: Dataset, path: Path, *, stored: np.ndarray, syntax: Syntax) -> None:
    """Write one image; files of an encoded syntax are to be checked by `check_encoded` afterwards.

    Args:
        header: complete but for its pixels, valid for the CT Image Storage SOP class.
        path: of the file.
        stored: stored values, (rows, columns), int16 or uint16.
        syntax: of the file.

    Raises:
        BundleError: when the encoder is missing or fails.
    """
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = uid.CTImageStorage
    meta.MediaStorageSOPInstanceUID = uid.UID(header.SOPInstanceUID)
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    meta.ImplementationClassUID = uid.UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    dataset = FileDataset(str(path), header, preamble=b"\0" * 128, file_meta=meta)
    dataset.add_new("PixelData", "OW", stored.astype(f"<{stored.dtype.str[1:]}").tobytes())
    if syntax.encoder:
        try:
            dataset.compress(syntax.uid, encoding_plugin=syntax.encoder, generate_instance_uid=False)
        except Exception as error:  # each encoder has its own kinds
            raise BundleError(f"pixels cannot be encoded as {syntax.uid.name}", hint=_OTHER_SYNTAX) from error
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)


def check_encoded(paths: Sequence[Path], stored: Iterable[np.ndarray], *, syntax: Syntax) -> None:
    """Read encoded files back, by the decoders that read series, and compare.

    Args:
        paths: one file per image.
        stored: stored values (rows, columns) of each; taken a few at a time.
        syntax: of the files.

    Raises:
        BundleError: when one does not decode to exactly its stored values.
    """
    values = iter(stored)
    for first in range(0, len(paths), _CHECKED_AT_ONCE):
        few = paths[first : first + _CHECKED_AT_ONCE]
        if not _decode_to(few, list(itertools.islice(values, len(few)))):
            raise BundleError(f"pixels encoded as {syntax.uid.name} do not decode to themselves", hint=_OTHER_SYNTAX)


def _decode_to(paths: Sequence[Path], stored: Sequence[np.ndarray]) -> bool:
    def images() -> Iterator[Image]:
        for path in paths:
            with path.open("rb") as stream:
                yield image_of(read_whole(stream))

    try:
        back = [np.empty_like(values) for values in stored]
        same = [problem is None and np.array_equal(back[k], stored[k]) for k, problem in decode_all(images(), back)]
    except (Unusable, NotDicom):
        return False
    return len(same) == len(paths) and all(same)


@contextlib.contextmanager
def strict_writing() -> Iterator[None]:
    """Make pydicom refuse to write an invalid value, where it would only warn."""
    before = config.settings.writing_validation_mode
    config.settings.writing_validation_mode = config.RAISE
    try:
        yield
    finally:
        config.settings.writing_validation_mode = before


_OTHER_SYNTAX = "write with --transfer_syntax explicit"
