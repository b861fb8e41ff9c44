"""Strict reading of single elements from untrusted headers, without pydicom's conversions and warnings.

Warnings of pydicom quote values, which may identify a patient; and its decimal strings of more than 16 characters,
with exponents, signs and blanks (all seen in real files) deserve a plain float.
"""

import contextlib
import logging
import math
import re
import warnings
from collections.abc import Iterator

from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset

_LOUD = [logging.getLogger(name) for name in ("pydicom", "openjpeg", "rle", "libjpeg")]
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


class Unusable(Exception):
    """A slice or a group of slices cannot be part of a volume; the message says why.

    Args:
        message: the reason, without identifiers.
        hint: what to do about it.
        foreign: it is no volume at all and never was (a localizer, another modality), rather than a broken one.
    """

    def __init__(self, message: str, *, hint: str = "", foreign: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.foreign = foreign
        self.header: Dataset | None = None  # of the file it is about, as far as it could be read


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep from the log what pydicom and its decoders say: warnings quote values, and errors are raised as well."""
    before = [(logger, logger.disabled) for logger in _LOUD]
    for logger in _LOUD:
        logger.disabled = True  # unlike a level, this empties no caches: headers are read a thousand times a second
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, disabled in before:
            logger.disabled = disabled


def text(header: Dataset, keyword: str) -> str:
    """An element's text, values joined by a backslash, stripped; "" when absent or empty."""
    tag = tag_for_keyword(keyword)
    assert tag is not None, keyword
    if tag not in header:
        return ""
    value = header.get_item(tag).value
    if value is None:
        return ""
    if isinstance(value, bytes):
        return "\\".join(part.strip(" \0") for part in value.decode("latin-1").split("\\"))
    if isinstance(value, str):
        return value.strip(" \0")
    if hasattr(value, "__iter__") and not hasattr(value, "components"):
        return "\\".join(str(part).strip(" \0") for part in value)
    return str(value).strip(" \0")


def decimals(header: Dataset, keyword: str, *, count: int) -> tuple[float, ...]:
    """Exactly `count` finite numbers of a decimal-string element.

    Raises:
        Unusable: when it is absent, empty, of another count, or holds something else than finite numbers.
    """
    value = text(header, keyword)
    if not value:
        raise Unusable(f"{keyword} is missing or empty")
    parts = [part.strip() for part in value.split("\\")]
    if not all(_NUMBER.fullmatch(part) for part in parts):
        raise Unusable(f"{keyword} holds something that is no number")
    numbers = tuple(float(part) for part in parts)
    if len(numbers) != count:
        raise Unusable(f"{keyword} has {len(numbers)} values instead of {count}")
    if not all(math.isfinite(number) for number in numbers):
        raise Unusable(f"{keyword} holds a number out of range")
    return numbers


def integer(header: Dataset, keyword: str) -> int | None:
    """A single binary or text integer; None when absent or empty.

    Raises:
        Unusable: when it is no single integer.
    """
    tag = tag_for_keyword(keyword)
    assert tag is not None, keyword
    if tag not in header:
        return None
    try:
        if isinstance(header.get_item(tag), RawDataElement):
            with quiet():  # costs more than the rest, and is needed at the first reading only
                value = header[tag].value
        else:
            value = header.get_item(tag).value
        return None if value is None or value == "" else int(value)
    except Exception as error:  # pydicom has exceptions of its own for bytes that do not fit the VR
        raise Unusable(f"{keyword} is no single integer") from error
