import io

import pydicom
import pytest
from phantom_series import write_phantom_series
from pydicom import uid

from bundle.dicom.elements import Unusable
from bundle.dicom.slices import read_slices


@pytest.fixture
def content(tmp_path):
    write_phantom_series(tmp_path, slices=1)
    return next(tmp_path.iterdir()).read_bytes()


def slices(content: bytes):
    return read_slices(io.BytesIO(content), "file")


def test_header_has_no_pixels_and_no_private_elements(tmp_path):
    write_phantom_series(tmp_path, slices=1)
    path = next(tmp_path.iterdir())
    dataset = pydicom.dcmread(path)
    dataset.private_block(0x29, "TEST", create=True).add_new(1, "LO", "something")
    dataset.save_as(path)
    (image,) = slices(path.read_bytes())
    assert "PixelData" not in image.header and not any(element.tag.is_private for element in image.header)
    assert image.frame is None and image.header.file_meta.TransferSyntaxUID == uid.ExplicitVRLittleEndian


@pytest.mark.parametrize("keep", [200, 500, 900, 0.5, 0.99])
def test_a_file_cut_anywhere_is_refused_and_not_foreign(content, keep):
    with pytest.raises(Unusable) as caught:
        slices(content[: int(keep if keep > 1 else keep * len(content))])
    assert not caught.value.foreign


@pytest.mark.parametrize(
    ("keyword", "value", "words"),
    [("Modality", "MR", "MR"), ("SOPClassUID", uid.SecondaryCaptureImageStorage, "Secondary Capture")],
)
def test_what_is_no_ct_is_foreign(content, keyword, value, words):
    dataset = pydicom.dcmread(io.BytesIO(content))
    setattr(dataset, keyword, value)
    changed = io.BytesIO()
    pydicom.dcmwrite(changed, dataset)
    with pytest.raises(Unusable, match=words) as caught:
        slices(changed.getvalue())
    assert caught.value.foreign


def test_sizes_beyond_reason_are_refused_before_anything_is_allocated(content):
    dataset = pydicom.dcmread(io.BytesIO(content))
    dataset.Rows = dataset.Columns = 65535
    changed = io.BytesIO()
    pydicom.dcmwrite(changed, dataset)
    with pytest.raises(Unusable, match="rows"):
        slices(changed.getvalue())


def test_a_directory_is_foreign(content):
    dataset = pydicom.dcmread(io.BytesIO(content))
    dataset.SOPClassUID = uid.MediaStorageDirectoryStorage
    del dataset.Modality
    changed = io.BytesIO()
    pydicom.dcmwrite(changed, dataset)
    with pytest.raises(Unusable, match="DICOMDIR") as caught:
        slices(changed.getvalue())
    assert caught.value.foreign


def test_loss_that_only_the_syntax_tells_is_stated(tmp_path):
    write_phantom_series(tmp_path, slices=1, transfer_syntax=uid.JPEGLSLossless)
    content = next(tmp_path.iterdir()).read_bytes()
    assert "LossyImageCompression" not in slices(content)[0].header
    lossy = content.replace(b"1.2.840.10008.1.2.4.80", b"1.2.840.10008.1.2.4.81")
    header = slices(lossy)[0].header
    assert header.LossyImageCompression == "01" and float(header.LossyImageCompressionRatio) > 1
    assert header.LossyImageCompressionMethod == "ISO_14495_1"
