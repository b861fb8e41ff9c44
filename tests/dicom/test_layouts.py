import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset

from bundle.dicom.elements import Unusable
from bundle.dicom.layouts import PixelLayout, check_matrix, is_native, padding_range, pixel_layout


def header(syntax=uid.ExplicitVRLittleEndian, **values):
    lawful = {
        "PhotometricInterpretation": "MONOCHROME2", "SamplesPerPixel": 1, "Rows": 4, "Columns": 5,
        "BitsAllocated": 16, "BitsStored": 12, "HighBit": 11, "PixelRepresentation": 0,
    }  # fmt: skip
    made = Dataset()
    for keyword, value in {**lawful, **values}.items():
        if value is not None:
            setattr(made, keyword, value)
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = syntax
    return made


def test_layout():
    assert pixel_layout(header()) == PixelLayout(4, 5, 16, 12, 11, False)
    assert pixel_layout(header(HighBit=None)).high_bit == 11
    assert pixel_layout(header()).frame_bytes == 40 and is_native(header()) and not is_native(header(uid.RLELossless))
    kinds = [PixelLayout(1, 1, 32, stored, stored - 1, signed).dtype for stored in (16, 17) for signed in (True, False)]
    assert kinds == [np.int16, np.uint16, np.int32, np.int64]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"PhotometricInterpretation": "RGB"}, "is RGB"),
        ({"PhotometricInterpretation": "DOE^JOHN"}, "is unknown"),
        ({"SamplesPerPixel": 3}, "SamplesPerPixel"),
        ({"Rows": 9000}, "matrix"),
        ({"Columns": None}, "matrix"),
        ({"BitsAllocated": 8}, "BitsAllocated"),
        ({"BitsStored": 17}, "BitsStored"),
        ({"BitsStored": 8}, "BitsStored"),
        ({"HighBit": 10}, "HighBit"),
        ({"HighBit": 16}, "HighBit"),
        ({"PixelRepresentation": None}, "PixelRepresentation"),
        ({"syntax": uid.MPEG2MPML}, "transfer syntax is MPEG2"),
        ({"syntax": "1.2.3.4"}, "a private or invalid one"),
    ],
)
def test_what_is_no_image_of_hu_is_refused(values, words):
    with pytest.raises(Unusable, match=words):
        pixel_layout(header(**values))


def test_matrix():
    assert check_matrix(header(), frames=3) == 120
    with pytest.raises(Unusable, match="NumberOfFrames"):
        check_matrix(header(), frames=20001)


@pytest.mark.parametrize(("representation", "wanted"), [(0, (63536, 63546)), (1, (-2000, -1990))])
def test_padding_is_read_in_the_sign_of_the_pixels(representation, wanted):
    padded = header(PixelRepresentation=representation)
    assert padding_range(padded) is None
    padded.add_new("PixelPaddingValue", "US", 63536)
    padded.add_new("PixelPaddingRangeLimit", "US", 63546)
    assert padding_range(padded) == wanted


@given(st.integers(9, 32), st.booleans(), st.data())
@settings(max_examples=80, deadline=None)
def test_bits_that_are_not_stored_never_matter(stored, signed, data):
    size = 16 if stored <= 16 else 32
    high = data.draw(st.integers(stored - 1, size - 1))
    low = -(1 << (stored - 1)) if signed else 0
    values = np.array(data.draw(st.lists(st.integers(low, low + (1 << stored) - 1), min_size=4, max_size=4)))
    garbage = np.array(data.draw(st.lists(st.integers(0, (1 << size) - 1), min_size=4, max_size=4)))
    mask = ((1 << stored) - 1) << (high + 1 - stored)
    words = ((values << (high + 1 - stored)) & mask) | (garbage & ~mask & ((1 << size) - 1))
    layout = PixelLayout(2, 2, size, stored, high, signed)
    for kind in {layout.dtype, np.dtype(np.int64)}:
        for order in "<>":
            out = np.empty((2, 2), kind)
            layout.values(words.astype(f"{order}u{size // 8}").reshape(2, 2), out)
            np.testing.assert_array_equal(out.ravel(), values)
