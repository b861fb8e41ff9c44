import numpy as np
import pydicom
import pytest
from phantom_series import write_phantom_series
from pydicom import config

from bundle.dicom.derived_header import inherited
from bundle.dicom.index import find_series
from bundle.dicom.instance import SYNTAXES, check_encoded, named_syntax, strict_writing, write_instance
from bundle.errors import BundleError


@pytest.fixture
def header(tmp_path):
    write_phantom_series(tmp_path / "in", slices=2, size=32)
    made = inherited(find_series(tmp_path / "in").series[0].headers[0])
    made.SOPClassUID, made.SOPInstanceUID, made.SeriesInstanceUID = "1.2.840.10008.5.1.4.1.1.2", "1.2.3", "1.2"
    return made


@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("name", SYNTAXES)
def test_every_syntax_gives_back_every_value(tmp_path, header, name, signed, bits):
    header.BitsStored, header.HighBit, header.PixelRepresentation = bits, bits - 1, int(signed)
    low = -(1 << (bits - 1)) if signed else 0
    rng = np.random.default_rng(0)
    stored = rng.integers(low, low + (1 << bits), (32, 32)).astype(np.int16 if signed else np.uint16)
    stored[0, :2] = low, low + (1 << bits) - 1
    write_instance(header, tmp_path / "a.dcm", stored=stored, syntax=named_syntax(name))
    assert pydicom.dcmread(tmp_path / "a.dcm").file_meta.TransferSyntaxUID == SYNTAXES[name].uid
    check_encoded([tmp_path / "a.dcm"], [stored], syntax=named_syntax(name))
    with pytest.raises(BundleError, match="do not decode to themselves"):
        check_encoded([tmp_path / "a.dcm"], [stored ^ 1], syntax=named_syntax(name))


def test_names_of_syntaxes():
    with pytest.raises(BundleError, match="one of explicit, rle, jpeg_ls, jpeg_2000, not jpeg"):
        named_syntax("jpeg")


def test_strict_writing_is_for_a_while():
    before = config.settings.writing_validation_mode
    with strict_writing():
        assert config.settings.writing_validation_mode == config.RAISE
    assert config.settings.writing_validation_mode == before
