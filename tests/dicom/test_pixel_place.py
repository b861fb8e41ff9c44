import io

import numpy as np
import pydicom
import pytest
from phantom_series import write_phantom_series
from pydicom import uid

from bundle.dicom.elements import Unusable
from bundle.dicom.headers import read_to_pixels
from bundle.dicom.pixel_place import UNDEFINED, at_pixels, find_pixels, is_implicit

NATIVE = [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian]


def opened(folder, syntax):
    write_phantom_series(folder, slices=1, transfer_syntax=syntax)
    content = next(folder.iterdir()).read_bytes()
    return content, *read_to_pixels(io.BytesIO(content))


@pytest.mark.parametrize("syntax", NATIVE, ids=lambda syntax: syntax.name)
def test_the_place_of_words_is_where_a_parser_finds_them(tmp_path, syntax):
    content, header, position = opened(tmp_path, syntax)
    stream = io.BytesIO(content)
    place = find_pixels(stream, header, position, size=64 * 64 * 2)
    assert content[place.start : place.start + place.length] == pydicom.dcmread(io.BytesIO(content)).PixelData
    assert place.big_endian == (syntax == uid.ExplicitVRBigEndian)
    assert at_pixels(stream, position) and not at_pixels(stream, position - 8)
    assert is_implicit(stream, position) == (syntax == uid.ImplicitVRLittleEndian)
    with pytest.raises(Unusable, match="truncated"):
        find_pixels(io.BytesIO(content[:-1]), header, position, size=64 * 64 * 2)
    with pytest.raises(Unusable, match="truncated"):
        find_pixels(stream, header, position, size=64 * 64 * 2 + 2)


def test_the_place_of_fragments(tmp_path):
    content, header, position = opened(tmp_path, uid.RLELossless)
    place = find_pixels(io.BytesIO(content), header, position, size=64 * 64 * 2)
    assert place.length == UNDEFINED and content[place.start : place.start + 4] == b"\xfe\xff\x00\xe0"


def test_what_a_syntax_forbids_has_no_place(tmp_path):
    content, header, position = opened(tmp_path / "a", uid.ExplicitVRLittleEndian)
    undefined = bytearray(content)
    undefined[position + 8 : position + 12] = b"\xff" * 4
    assert find_pixels(io.BytesIO(undefined), header, position, size=8192) is None
    header.file_meta.TransferSyntaxUID = uid.RLELossless
    assert find_pixels(io.BytesIO(content), header, position, size=8192) is None


def test_floats_are_refused(tmp_path):
    write_phantom_series(tmp_path, slices=1)
    dataset = pydicom.dcmread(next(tmp_path.iterdir()))
    del dataset.PixelData
    dataset.FloatPixelData = np.zeros((64, 64), np.float32).tobytes()
    content = io.BytesIO()
    pydicom.dcmwrite(content, dataset)
    header, position = read_to_pixels(content)
    with pytest.raises(Unusable, match="FloatPixelData"):
        find_pixels(content, header, position, size=0)
