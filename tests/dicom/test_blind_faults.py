"""The faults of derived CT that dciodvfy does not see: each has to be absent from what the writer writes."""

import datetime
import itertools

import numpy as np
import pydicom
import pytest
from phantom_series import write_phantom_series
from pydicom import uid
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from bundle.dicom.index import read_volume
from bundle.dicom.instance import SYNTAXES
from bundle.dicom.writer import Derivation, write_derived_series

DERIVATION = Derivation(
    description="noise reduced", series_suffix="enhanced", settings_digest="ab", weights_digest="cd",
    software_version="0",
)  # fmt: skip
# CID 7203 terms that are true of something this writer does.
TRUE_CODES = {("113085", "DCM")}


def derived(folder, *, change=3.0, drop=(), transfer_syntax="explicit", **tags) -> list[pydicom.FileDataset]:
    """Images derived from a phantom series with `tags`."""
    write_phantom_series(folder / "in", slices=4, size=32, drop=drop, **tags)
    volume = read_volume(str(folder / "in"), gaps="resample")
    result = write_derived_series(
        volume, volume.array + np.float32(change), folder / "out", derivation=DERIVATION,
        now=datetime.datetime(2025, 1, 2), transfer_syntax=transfer_syntax,
    )  # fmt: skip
    return [pydicom.dcmread(path) for path in result.paths]


def words(image: Dataset) -> np.ndarray:
    """Stored words as they lie in the file, signed or not as the header says."""
    return np.frombuffer(image.PixelData, "<i2" if image.PixelRepresentation else "<u2")


def test_no_stale_extreme_values(tmp_path):
    stale = (
        "SmallestImagePixelValue LargestImagePixelValue SmallestPixelValueInSeries LargestPixelValueInSeries "
        "SmallestImagePixelValueInPlane LargestImagePixelValueInPlane"
    ).split()
    for image in derived(tmp_path, **dict.fromkeys(stale, 7)):
        assert not any(keyword in image for keyword in stale)


@pytest.mark.parametrize(("representation", "change"), [(0, 3.0), (1, 3.0), (0, -2000.0), (1, 40_000.0)])
def test_padding_has_the_vr_of_the_pixels(tmp_path, representation, change):
    padding = {"PixelPaddingValue": 24, "PixelPaddingRangeLimit": 20}
    for image in derived(tmp_path, change=change, PixelRepresentation=representation, **padding):
        for keyword in padding:
            if keyword in image:
                assert image[keyword].VR == ("SS" if image.PixelRepresentation else "US")
        assert ("PixelPaddingRangeLimit" not in image) or ("PixelPaddingValue" in image)


@pytest.mark.parametrize(
    ("centre", "width", "explanation", "kept"),
    [
        (["40", "50"], ["400", "1500"], ["SOFT", "LUNG"], True),
        (["40", "50"], ["400", "1500"], ["SOFT"], True),
        (["40", "50"], ["400"], ["SOFT", "LUNG"], False),
        (["40"], None, None, False),
        (None, ["400"], None, False),
    ],
)
def test_windows_come_in_equal_numbers(tmp_path, centre, width, explanation, kept):
    tags = {"WindowCenter": centre, "WindowWidth": width, "WindowCenterWidthExplanation": explanation}
    for image in derived(tmp_path, **tags):
        present = [keyword for keyword in tags if keyword in image]
        assert len({image[keyword].VM for keyword in present}) <= 1
        assert ("WindowWidth" in image) == ("WindowCenter" in image) == kept


@pytest.mark.parametrize("kind", [None, "HU", "HOUNSFIELD", ""])
def test_rescale_type_is_hu(tmp_path, kind):
    assert {image.RescaleType for image in derived(tmp_path, RescaleType=kind)} == {"HU"}


def test_a_near_lossless_source_is_said_to_have_been_lossy(tmp_path):
    write_phantom_series(tmp_path / "in", slices=4, size=32)
    for path in (tmp_path / "in").iterdir():
        image = pydicom.dcmread(path)
        image.compress(uid.JPEGLSNearLossless, jls_error=2, encoding_plugin="pyjpegls", generate_instance_uid=False)
        for keyword in ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"):
            image.pop(keyword, None)
        image.save_as(path)
    volume = read_volume(str(tmp_path / "in"))
    result = write_derived_series(
        volume, volume.array, tmp_path / "out", derivation=DERIVATION, now=datetime.datetime(2025, 1, 2)
    )
    for image in map(pydicom.dcmread, result.paths):
        assert image.LossyImageCompression == "01" and image.LossyImageCompressionMethod == "ISO_14495_1"
        assert 1 < image.LossyImageCompressionRatio < 20


def test_an_earlier_lossy_history_is_kept_with_its_ratio_and_method(tmp_path):
    history = {
        "LossyImageCompression": "01",
        "LossyImageCompressionRatio": ["10", "4.5"],
        "LossyImageCompressionMethod": ["ISO_10918_1", "ISO_14495_1"],
    }
    for image in derived(tmp_path / "whole", transfer_syntax="jpeg_ls", **history):
        assert [image[keyword].value for keyword in history] == list(history.values())
    for image in derived(tmp_path / "part", **{**history, "LossyImageCompressionMethod": "ISO_10918_1"}):
        assert image.LossyImageCompression == "01" and image.LossyImageCompressionRatio == [10, 4.5]
        assert "LossyImageCompressionMethod" not in image, "nobody knows whose ratio it was"
    for image in derived(tmp_path / "none", **{**history, "LossyImageCompression": "00"}):
        assert image.LossyImageCompression == "00" and "LossyImageCompressionRatio" not in image


@pytest.mark.parametrize("name", SYNTAXES)
def test_a_lossless_output_claims_no_loss(tmp_path, name):
    assert not any("LossyImageCompression" in image for image in derived(tmp_path, transfer_syntax=name))


@pytest.mark.parametrize(
    ("bits", "representation", "change"),
    [(12, 0, 3.0), (12, 0, 3000.0), (12, 0, -500.0), (12, 1, 0.0), (16, 1, 40_000.0), (16, 0, -40_000.0)],
)
def test_no_value_lies_outside_its_bits(tmp_path, bits, representation, change):
    tags = {"BitsStored": bits, "HighBit": bits - 1, "PixelRepresentation": representation}
    for image in derived(tmp_path, change=change, **tags):
        low = -(1 << (image.BitsStored - 1)) if image.PixelRepresentation else 0
        values = words(image)
        assert low <= values.min() and values.max() < low + (1 << image.BitsStored)
        assert image.BitsAllocated == 16 and image.HighBit == image.BitsStored - 1


@pytest.mark.parametrize("kind", [["ORIGINAL", "PRIMARY", "AXIAL"], ["DERIVED", "PRIMARY"], None])
def test_image_type_is_derived_and_secondary(tmp_path, kind):
    for image in derived(tmp_path, ImageType=kind):
        assert list(image.ImageType) == ["DERIVED", "SECONDARY", "AXIAL"]


def test_derivation_codes_are_true_ones(tmp_path):
    invented = Dataset()
    invented.CodeValue, invented.CodingSchemeDesignator, invented.CodeMeaning = "999999", "DCM", "Nothing"
    tags = {"DerivationCodeSequence": [invented], "DerivationDescription": "of an earlier derivation"}
    for image in derived(tmp_path / "plain", **tags):
        assert "DerivationCodeSequence" not in image, "there is no code for denoising"
    for image in derived(tmp_path / "gap", drop=(2,), **tags):
        assert {(item.CodeValue, item.CodingSchemeDesignator) for item in image.DerivationCodeSequence} == TRUE_CODES


def test_a_derivation_is_described_and_has_its_sources(tmp_path):
    for image in itertools.chain(derived(tmp_path / "plain"), derived(tmp_path / "gap", drop=(1,))):
        assert image.DerivationDescription.startswith("noise reduced") and len(image.DerivationDescription) <= 1024
        for item in image.SourceImageSequence:
            assert item.ReferencedSOPInstanceUID and item.ReferencedSOPClassUID == uid.CTImageStorage
            assert item.PurposeOfReferenceCodeSequence[0].CodeValue == "121322"


@pytest.mark.parametrize(("said", "expected"), [(None, "NO"), ("NO", "NO"), ("YES", "YES"), ("", "NO")])
def test_burned_in_annotation_is_said(tmp_path, said, expected):
    assert {image.BurnedInAnnotation for image in derived(tmp_path, BurnedInAnnotation=said)} == {expected}


@pytest.mark.parametrize("name", SYNTAXES)
def test_the_pixels_are_those_that_were_restored(tmp_path, name):
    images = derived(tmp_path, change=17.0, transfer_syntax=name)
    source = read_volume(str(tmp_path / "in"))
    back = read_volume(str(tmp_path / "out"))
    np.testing.assert_array_equal(back.array, source.array + 17)
    assert {image.file_meta.TransferSyntaxUID for image in images} == {SYNTAXES[name].uid}
    assert all(
        isinstance(image["PixelData"], DataElement) and image["PixelData"].VR in ("OW", "OB") for image in images
    )
