import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from phantom_series import write_phantom_series
from pydicom import uid

from bundle.dicom import report as module
from bundle.dicom.index import find_series
from bundle.dicom.report import report_of, report_of_refusal, sample_slices_hu, shown

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
SECRET = {
    "PatientName": "Secret^Anna", "PatientID": "Secret-7", "PatientBirthDate": "19700131",
    "AccessionNumber": "Secret-8", "InstitutionName": "Secret Hospital", "StationName": "Secret",
    "ReferringPhysicianName": "Secret^Doc", "StudyDescription": "Secret", "SeriesDescription": "Secret",
}  # fmt: skip


def only(folder, *, root=None):
    (series,) = find_series(root or folder).series
    return report_of(series, root=root or folder)


def refused(folder):
    (refusal,) = find_series(folder).refused
    return report_of_refusal(refusal, root=folder)


def test_facts_of_a_usable_series(tmp_path):
    tags = {"XRayTubeCurrent": lambda k: 100 + k, "Exposure": "90", "ExposureTime": "500"}
    write_phantom_series(tmp_path / "a" / "b", slices=5, size=48, spacing=(0.7, 0.8, 2.5), **tags)
    report = only(tmp_path)
    assert (report.verdict, report.reason) == ("usable", "5 slices on one regular grid")
    assert report.where == "a/b" and len(report.key) == 16
    assert (report.scanner, report.kernel, report.kvp, report.body_part) == ("Phantom P1", "STD", 120.0, "CHEST")
    assert (report.size, report.spacing_mm, report.thickness_mm) == ((48, 48, 5), (0.7, 0.8, 2.5), 2.5)
    assert report.tube_current_ma == (100, 104)
    assert report.exposure_mas == (90, 90) and report.exposure_time_ms == (500, 500)
    assert (report.tilt_degrees, report.missing_slices, report.duplicates, report.irregular) == (0, 0, 0, False)
    assert (report.transfer_syntax, report.lossy, report.noise_hu) == ("Explicit VR Little Endian", False, None)


def test_what_headers_do_not_say_stays_open(tmp_path):
    names = ("Manufacturer", "ManufacturerModelName", "ConvolutionKernel", "KVP", "SliceThickness", "BodyPartExamined")
    write_phantom_series(tmp_path, slices=3, **dict.fromkeys(names))
    report = only(tmp_path)
    assert (report.scanner, report.kernel, report.body_part) == ("", "", "")
    assert report.kvp is report.thickness_mm is report.tube_current_ma is report.exposure_mas is None


def test_transfer_syntaxes_and_loss(tmp_path):
    write_phantom_series(tmp_path / "a", transfer_syntax=uid.RLELossless, LossyImageCompression="01")
    write_phantom_series(tmp_path / "b")
    (tmp_path / "c").mkdir()
    for number, path in enumerate(sorted((tmp_path / "b").iterdir())):
        shutil.copy(tmp_path / ("a" if number == 4 else "b") / path.name, tmp_path / "c")
    report = only(tmp_path / "c")
    assert set(report.transfer_syntax.split(" and ")) == {"Explicit VR Little Endian", "RLE Lossless"} and report.lossy
    assert module._syntax_name("1.2.3") == module._syntax_name("Secret") == "unknown"
    assert module._syntax_name(uid.JPEGLosslessSV1) == "JPEG Lossless"


def test_duplicates_are_counted(tmp_path):
    write_phantom_series(tmp_path)
    for number, path in enumerate(sorted(tmp_path.iterdir())[:2]):
        shutil.copy(path, tmp_path / f"copy{number}.dcm")
    assert only(tmp_path).duplicates == 2


def test_tilt(tmp_path):
    write_phantom_series(tmp_path, ImagePositionPatient=lambda k: ["-20", f"{-30 + k * 0.5:g}", f"{k * 2.5:g}"])
    report = only(tmp_path)
    assert report.tilt_degrees == pytest.approx(11.31, abs=0.01) and "sheared" in report.reason


def test_a_refusal_tells_the_scanner_and_what_is_missing(tmp_path):
    write_phantom_series(tmp_path, drop=(3, 7))
    report = refused(tmp_path)
    assert (report.verdict, report.missing_slices, report.irregular) == ("refused", 2, False)
    assert report.scanner == "Phantom P1" and report.kvp == 120 and report.hint


def test_irregular_spacing(tmp_path):
    write_phantom_series(tmp_path, ImagePositionPatient=lambda k: ["0", "0", f"{k * 2.5 + (k == 5) * 0.7:g}"])
    assert refused(tmp_path).irregular


def test_resampled_series_say_what_was_not_there(tmp_path):
    hu = write_phantom_series(tmp_path / "gap", drop=(3, 7))
    write_phantom_series(tmp_path / "odd", ImagePositionPatient=lambda k: ["0", "0", f"{k * 2.5 + (k == 5) * 0.7:g}"])
    seen = []
    for name in ("gap", "odd"):
        (series,) = find_series(tmp_path / name, gaps="resample").series
        report = report_of(series, root=tmp_path)
        assert report.verdict == "usable" and report.notes
        seen.append((report.missing_slices, report.irregular))
    assert seen == [(2, False), (0, True)]
    (series,) = find_series(tmp_path / "gap", gaps="resample").series
    np.testing.assert_array_equal(sample_slices_hu(series), hu[:, :, [1, 6, 10]])


def test_what_is_no_ct_is_told_apart_and_its_facts_left_alone(tmp_path):
    write_phantom_series(tmp_path, Modality="MR")
    report = refused(tmp_path)
    assert report.verdict == "not CT volume" and report.scanner == ""


def test_an_archive_is_where_its_series_lies(tmp_path):
    write_phantom_series(tmp_path / "in", slices=3)
    with zipfile.ZipFile(tmp_path / "study.zip", "w") as archive:
        for path in (tmp_path / "in").iterdir():
            archive.write(path, f"deep/{path.name}")
    shutil.rmtree(tmp_path / "in")
    assert only(tmp_path).where == "study.zip"
    assert only(tmp_path / "study.zip").where == "study.zip"


def test_a_series_over_several_folders_lies_in_what_they_share(tmp_path):
    write_phantom_series(tmp_path / "a" / "b", slices=4)
    (tmp_path / "a" / "c").mkdir()
    moved = next((tmp_path / "a" / "b").iterdir())
    moved.rename(tmp_path / "a" / "c" / moved.name)
    assert only(tmp_path).where == "a"


@pytest.mark.parametrize("tags", [{}, {"drop": (3,)}, {"Modality": "MR"}, {"RescaleSlope": None}])
def test_no_identifiers(tmp_path, tags):
    folder = tmp_path / "Secret" / "in"  # folders above the input may be named after a patient
    write_phantom_series(folder, **SECRET, **tags)
    index = find_series(folder)
    reports = [report_of(series, root=folder) for series in index.series]
    reports += [report_of_refusal(refusal, root=folder) for refusal in index.refused]
    assert len(reports) == 1
    said = str(reports[0])
    assert "Secret" not in said and "19700131" not in said and not re.search(r"\d{12}", said)


def test_text_cannot_steer_a_terminal(tmp_path):
    write_phantom_series(tmp_path, slices=3, ConvolutionKernel="B\x1b[2J\nx")
    assert only(tmp_path).kernel == "B [2J x"
    assert shown("a\x00b\r\n  c") == "a b c"


@pytest.mark.parametrize(("slices", "chosen"), [(12, [2, 6, 10]), (3, [0, 1, 2]), (2, [0, 1])])
def test_samples_are_slices_of_the_volume(tmp_path, slices, chosen):
    hu = write_phantom_series(tmp_path, slices=slices)
    np.testing.assert_array_equal(sample_slices_hu(find_series(tmp_path).series[0]), hu[:, :, chosen])


@pytest.mark.skipif(not DATA.exists(), reason="no real data here")
def test_a_multi_frame_object():
    folder = DATA / "odd" / "enhanced_multiframe_legacy"
    (series,) = find_series(folder).series
    report = report_of(series, root=folder)
    assert report.kvp == 120 and report.tube_current_ma == (201, 204) and report.where == "."
    assert sample_slices_hu(series).shape == (512, 512, 3)
