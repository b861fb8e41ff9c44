import pytest
from phantom_series import write_phantom_series
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from bundle.dicom.derived_header import decimal_string, inherited, series_description
from bundle.dicom.index import find_series


def source(**values) -> Dataset:
    header = Dataset()
    for keyword, value in values.items():
        setattr(header, keyword, value)
    return header


def item(**values) -> Dataset:
    return source(**values)


def test_facts_stay_and_pixel_facts_go(tmp_path):
    write_phantom_series(tmp_path, slices=2, SmallestImagePixelValue=1, LargestImagePixelValue=2)
    header = inherited(find_series(tmp_path).series[0].headers[0])
    assert header.PatientID == "phantom-1" and header.KVP == 120 and header.ConvolutionKernel == "STD"
    for keyword in ("SmallestImagePixelValue", "LargestImagePixelValue", "PixelData"):
        assert keyword not in header


def test_type_2_elements_are_always_there():
    header = inherited(Dataset())
    for keyword in ("PatientName", "KVP", "AcquisitionNumber", "PatientPosition", "AccessionNumber", "Laterality"):
        assert keyword in header


@pytest.mark.parametrize(("part", "present"), [("CHEST", False), ("BREAST", True), ("", True), ("SOMETHING", True)])
def test_laterality_only_where_a_pair_is_possible(part, present):
    assert ("Laterality" in inherited(source(BodyPartExamined=part))) is present


def test_windows_stay_only_when_whole():
    assert inherited(source(WindowCenter=["40", "50"], WindowWidth=["400", "500"])).WindowWidth == [400, 500]
    for centre, width in [("40", "0"), (["40", "50"], "400"), (None, "400")]:
        assert "WindowWidth" not in inherited(source(WindowCenter=centre, WindowWidth=width))


def test_values_their_vr_forbids_are_mended_or_dropped():
    header = inherited(
        source(
            TableHeight="123.4000000000000001",
            StudyDescription="x" * 80,
            ExposureTime="500.0",
            ScanOptions="lower case",
            FrameOfReferenceUID="no-uid",
        )
    )
    assert len(str(header["TableHeight"].value)) <= 16 and float(header.TableHeight) == pytest.approx(123.4)
    assert len(header.StudyDescription) == 64 and header.ExposureTime == 500
    assert "ScanOptions" not in header and "FrameOfReferenceUID" not in header


@pytest.mark.parametrize("length", [0, 3, 48, 49, 50, 62, 64])
@pytest.mark.parametrize("suffix", ["enhanced", "enhanced (out of domain)", "x" * 63, "x" * 70])
def test_a_long_description_loses_its_own_end_and_not_what_was_done(length, suffix):
    said = series_description("d" * length, suffix)
    assert said.endswith(suffix[:64]) and len(said) <= 64 and said == said.strip()
    kept = said.removesuffix(suffix[:64]).strip()
    assert kept == "d" * len(kept) and len(kept) >= min(length, 63 - len(suffix))


def test_references_are_kept_whole_or_not_at_all():
    good = item(ReferencedSOPClassUID="1.2.3", ReferencedSOPInstanceUID="1.2.4")
    for bad in (item(ReferencedSOPClassUID="1.2.3", ReferencedSOPInstanceUID=""), item(ReferencedSOPInstanceUID="1.2")):
        assert "ReferencedImageSequence" not in inherited(source(ReferencedImageSequence=Sequence([good, bad])))
    assert len(inherited(source(ReferencedImageSequence=Sequence([good]))).ReferencedImageSequence) == 1


def test_decimal_strings_fit_and_are_exact_where_they_can_be():
    assert decimal_string(-1024.0) == "-1024" and decimal_string(0.488281) == "0.488281"
    assert len(decimal_string(1 / 3)) <= 16
