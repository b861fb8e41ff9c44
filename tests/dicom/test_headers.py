import io

import pydicom
import pytest
from phantom_series import write_phantom_series
from pydicom import uid

from bundle.dicom.elements import Unusable
from bundle.dicom.headers import NotDicom, read_header, read_whole
from bundle.dicom.slices import read_slices


@pytest.fixture
def content(tmp_path):
    write_phantom_series(tmp_path, slices=1)
    return next(tmp_path.iterdir()).read_bytes()


def slices(content: bytes):
    return read_slices(io.BytesIO(content), "file")


@pytest.mark.parametrize("content", [b"", b"text" * 100, b"\x89PNG" + bytes(500), b"\x08\x00" + bytes(500)])
def test_other_files_are_not_dicom(content):
    with pytest.raises((NotDicom, Unusable)):
        slices(content)
    if not content.startswith(b"\x08"):
        with pytest.raises(NotDicom):
            read_header(io.BytesIO(content))


def test_a_bare_data_set_is_read(content):
    dataset = pydicom.dcmread(io.BytesIO(content))
    bare = io.BytesIO()
    plain = pydicom.Dataset({tag: dataset[tag] for tag in dataset.keys()})
    pydicom.dcmwrite(bare, plain, implicit_vr=True, little_endian=True)
    assert slices(bare.getvalue())[0].header.Rows == 64


def test_deflated_is_read_and_its_bombs_are_not(tmp_path, monkeypatch):
    write_phantom_series(tmp_path, slices=1, transfer_syntax=uid.DeflatedExplicitVRLittleEndian)
    content = next(tmp_path.iterdir()).read_bytes()
    assert slices(content)[0].header.Rows == 64
    assert len(read_whole(io.BytesIO(content)).PixelData) == 64 * 64 * 2
    monkeypatch.setattr("bundle.dicom.headers.MAX_INFLATED_BYTES", 1000)
    with pytest.raises(Unusable, match="limit"):
        slices(content)


def test_a_long_header_is_read_like_a_short_one(tmp_path, content):
    dataset = pydicom.dcmread(io.BytesIO(content))
    dataset.private_block(0x29, "TEST", create=True).add_new(1, "OB", bytes(200_000))
    longer = io.BytesIO()
    pydicom.dcmwrite(longer, dataset)
    (long,), (short,) = slices(longer.getvalue()), slices(content)
    assert long.header == short.header and long.place.start == short.place.start + len(longer.getvalue()) - len(content)
    assert long.header.buffer is None and short.header.buffer is None
