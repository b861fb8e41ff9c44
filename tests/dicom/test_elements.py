import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from bundle.dicom.elements import Unusable, decimals, integer, text


def raw(keyword: str, value: bytes, vr: str = "DS") -> Dataset:
    header = Dataset()
    header[Tag(keyword)] = RawDataElement(Tag(keyword), vr, len(value), value, 0, False, True)
    return header


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=2, max_size=2))
def test_reads_whatever_python_writes(numbers):
    value = "\\".join(map(repr, numbers)).encode()
    assert decimals(raw("PixelSpacing", value), "PixelSpacing", count=2) == tuple(numbers)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (b"", "missing or empty"),
        (b"1", "1 values instead of 2"),
        (b"1\\nan", "no number"),
        (b"1\\inf", "no number"),
        (b"1\\1e999", "out of range"),
        (b"0,75\\0,75", "no number"),
        (b"1_0\\1", "no number"),
        (b"\xff\xfe\\1", "no number"),
    ],
)
def test_refuses_what_is_no_number(value, words):
    with pytest.raises(Unusable, match=words):
        decimals(raw("PixelSpacing", value), "PixelSpacing", count=2)


def test_odd_but_lawful_numbers():
    header = raw("PixelSpacing", b" 7.5E-1 \\ +0.7500000000000000000")
    assert decimals(header, "PixelSpacing", count=2) == (0.75, 0.75)


def test_text_of_raw_and_converted_elements_agree():
    header = raw("PatientID", b"abc ", "LO")
    before = text(header, "PatientID")
    assert before == str(header.PatientID) == text(header, "PatientID") == "abc"
    assert text(header, "StudyID") == ""


def test_integers():
    assert integer(Dataset(), "Rows") is None
    assert integer(raw("Rows", b"\x00\x02", "US"), "Rows") == 512
    with pytest.raises(Unusable, match="Rows"):
        integer(raw("Rows", b"\x00\x02\x03", "US"), "Rows")
    assert math.isclose(decimals(raw("KVP", b"120"), "KVP", count=1)[0], 120)
