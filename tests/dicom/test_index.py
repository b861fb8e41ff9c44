import errno
import os
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from phantom_series import phantom_hu, write_phantom_series

from bundle.dicom.index import find_series, read_volume
from bundle.errors import BundleError

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "ct"


def only(index):
    assert len(index.series) == 1, index
    return index.series[0]


def test_finds_one_series_in_slice_order(tmp_path):
    hu = write_phantom_series(tmp_path)
    calls = []
    series = only(find_series(tmp_path, progress=lambda done, total: calls.append((done, total))))
    assert calls[-1] == (12, 12) and len(calls) == 12
    assert series.shape == hu.shape and re.fullmatch("[0-9a-f]{16}", series.key)
    heights = [float(header.ImagePositionPatient[2]) for header in series.headers]
    assert heights == sorted(heights)
    assert (series.kernel, series.kvp, series.thickness_mm, series.scanner) == ("STD", 120.0, 2.5, "Phantom P1")
    np.testing.assert_array_equal(series.load().array, hu)


def test_explicit_files_in_any_order_give_the_same_volume(tmp_path):
    hu = write_phantom_series(tmp_path)
    paths = [str(path) for path in sorted(tmp_path.iterdir(), reverse=True)]
    volume = read_volume(paths)
    np.testing.assert_array_equal(volume.array, hu)
    assert volume.key == read_volume(str(tmp_path)).key == only(find_series(tmp_path)).key


def test_key_depends_on_content_alone(tmp_path):
    write_phantom_series(tmp_path / "a")
    write_phantom_series(tmp_path / "b")
    for number, path in enumerate(sorted((tmp_path / "b").iterdir(), reverse=True)):
        path.rename(path.with_name(f"other{number}"))
    write_phantom_series(tmp_path / "c", SeriesInstanceUID="")
    shutil.copytree(tmp_path / "c", tmp_path / "d")
    write_phantom_series(tmp_path / "e", SeriesInstanceUID="", seed=1)
    a, b, c, d, e = (only(find_series(tmp_path / name)).key for name in "abcde")
    assert a == b and c == d and len({a, c, e}) == 3


def test_patient_key_joins_series_of_a_patient(tmp_path):
    write_phantom_series(tmp_path / "a", patient="one")
    write_phantom_series(tmp_path / "b", patient="one", series="second", slices=5)
    write_phantom_series(tmp_path / "c", patient="two", slices=5)
    series = find_series(tmp_path).series
    assert len(series) == 3 and [s.key for s in series] == sorted(s.key for s in series)
    assert len({s.patient_key for s in series}) == 2
    assert "one" not in "".join(s.patient_key for s in series)


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"drop": (5,)}, "missing"),
        ({"Modality": "MR"}, "not CT"),
        ({"RescaleSlope": None}, "RescaleSlope"),
        ({"RescaleType": "US"}, "RescaleType"),
        ({"PixelSpacing": None}, "PixelSpacing"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizer"),
        ({"PatientID": lambda k: "one" if k < 6 else "two"}, "patient"),
        ({"FrameOfReferenceUID": lambda k: f"1.2.{k // 6}"}, "frame of reference"),
        ({"PhotometricInterpretation": "RGB"}, "RGB"),
        ({"slices": 1}, "single"),
        ({"ImageOrientationPatient": ["1", "0", "0", "1", "0", "0"]}, "ImageOrientationPatient"),
        ({"SOPInstanceUID": "1.2.3"}, "SOPInstanceUID"),
    ],
)
def test_refuses_and_says_why(tmp_path, tags, words):
    write_phantom_series(tmp_path, patient="Secret-7", **tags)
    index = find_series(tmp_path)
    assert not index.series
    said = " ".join(refusal.reason for refusal in index.refused)
    assert words in said and "Secret" not in said and not re.search(r"\d{12}", said)
    with pytest.raises(BundleError, match="no usable CT series"):
        read_volume(str(tmp_path))


def test_a_frame_of_reference_per_slice_says_nothing(tmp_path):
    write_phantom_series(tmp_path, FrameOfReferenceUID=lambda k: f"1.2.{k}")
    only(find_series(tmp_path))


def test_missing_empty_and_foreign_input_is_an_error(tmp_path):
    with pytest.raises(BundleError, match="does not exist"):
        find_series(tmp_path / "nothing")
    with pytest.raises(BundleError, match="empty"):
        find_series(tmp_path)
    (tmp_path / "notes.txt").write_text("no image at all" * 40)
    with pytest.raises(BundleError, match="no DICOM"):
        find_series(tmp_path)


def test_junk_pipes_and_links_do_no_harm(tmp_path):
    write_phantom_series(tmp_path / "deep" / "er")
    (tmp_path / "notes.dcm").write_text("no image at all" * 40)
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe.dcm")
    (tmp_path / "dangling.dcm").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to(".", target_is_directory=True)
    index = find_series(tmp_path)
    assert len(only(index).paths) == 12 and index.ignored == ["notes.dcm"]


def test_a_damaged_slice_refuses_its_series_even_at_the_end(tmp_path):
    write_phantom_series(tmp_path)
    last = max(tmp_path.iterdir(), key=lambda path: pydicom.dcmread(path).ImagePositionPatient[2])
    last.write_bytes(last.read_bytes()[:-1000])
    index = find_series(tmp_path)
    assert not index.series and "truncated" in index.refused[0].reason and index.refused[0].where == last.name


def test_an_unreadable_neighbour_is_noted(tmp_path):
    write_phantom_series(tmp_path)
    (tmp_path / "IM9999.dcm").write_bytes(b"\0" * 4000)
    assert any("IM9999.dcm" in note for note in only(find_series(tmp_path)).notes)


@pytest.mark.parametrize(
    ("name", "counted"),
    [
        ("IM9999.dcm", True),
        ("other.DCM", True),
        ("IM0012", True),  # named as the slices are, which have no extension here
        ("Thumbs.db", False),
        ("README", False),
        ("report_7.txt", False),
    ],
)
@pytest.mark.parametrize("content", [b"", b"\0" * 4000])
def test_what_may_have_been_an_end_slice_is_counted(tmp_path, name, counted, content):
    write_phantom_series(tmp_path)
    for path in list(tmp_path.iterdir()):
        path.rename(path.with_suffix(""))
    (tmp_path / name).write_bytes(content)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "IM0013.dcm").write_bytes(content)
    index = find_series(tmp_path)
    assert [(r.where, r.foreign) for r in index.refused] == ([(name, False)] if counted else [])
    assert bool(only(index).notes) == counted
    if counted:
        with pytest.raises(BundleError, match="may be missing"):
            read_volume(str(tmp_path))
    assert read_volume(only(index).paths).shape == (64, 64, 12)


def test_an_end_slice_whose_header_is_left_refuses_its_series(tmp_path):
    write_phantom_series(tmp_path)
    first = min(tmp_path.iterdir(), key=lambda path: pydicom.dcmread(path).ImagePositionPatient[2])
    first.write_bytes(first.read_bytes()[:900])  # cut inside its header, behind the identifiers
    index = find_series(tmp_path)
    assert not index.series and any(refusal.where == first.name for refusal in index.refused)
    first.write_bytes(first.read_bytes()[:450])  # and so that they are lost
    index = find_series(tmp_path)
    assert [(r.where, r.foreign) for r in index.refused] == [(first.name, False)]
    assert any("may be missing" in note for note in only(index).notes)


def test_splits_what_is_several_volumes_and_names_parts_apart(tmp_path):
    write_phantom_series(tmp_path / "soft")
    sharp = phantom_hu(seed=3)
    write_phantom_series(tmp_path / "sharp", hu=sharp, ConvolutionKernel="B70", SOPInstanceUID=lambda k: f"1.2.{k}")
    index = find_series(tmp_path)
    assert len({series.key for series in index.series}) == 2
    by_kernel = {series.kernel: series.load() for series in index.series}
    np.testing.assert_array_equal(by_kernel["B70"].array, sharp)
    assert all(by_kernel[series.kernel].key == series.key for series in index.series)


def test_duplicates_are_merged_only_when_equal(tmp_path):
    write_phantom_series(tmp_path)
    first = next(tmp_path.iterdir())
    shutil.copy(first, tmp_path / "copy.dcm")
    assert any("duplicate" in note for note in only(find_series(tmp_path)).notes)
    dataset = pydicom.dcmread(first)
    dataset.PixelData = bytes(len(dataset.PixelData))
    dataset.save_as(tmp_path / "copy.dcm")
    index = find_series(tmp_path)
    assert not index.series and "same position" in index.refused[0].reason


def test_reads_zip_archives(tmp_path):
    hu = write_phantom_series(tmp_path / "in")
    with zipfile.ZipFile(tmp_path / "study.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted((tmp_path / "in").iterdir()):
            archive.write(path, f"a/{path.name}")
    series = only(find_series(tmp_path / "study.zip"))
    assert all("study.zip!/a/IM" in path for path in series.paths)
    np.testing.assert_array_equal(series.load().array, hu)
    np.testing.assert_array_equal(read_volume(series.paths).array, hu)


def test_explicit_files_must_all_belong(tmp_path):
    write_phantom_series(tmp_path / "in")
    (tmp_path / "notes").write_text("no image at all" * 40)
    with pytest.raises(BundleError, match="notes"):
        read_volume([*map(str, (tmp_path / "in").iterdir()), str(tmp_path / "notes")])


def test_a_file_that_changed_after_the_index_is_no_volume(tmp_path):
    write_phantom_series(tmp_path)
    series = only(find_series(tmp_path))
    Path(series.paths[3]).unlink()
    with pytest.raises(BundleError, match="slice 3"):
        series.load()


@pytest.mark.skipif(not DATA.exists(), reason="no real data here")
def test_real_series_are_all_found_but_the_uneven_one():
    index = find_series(DATA)
    assert len(index.series) == 12
    assert [refusal.where.split("/")[0] for refusal in index.refused] == ["ge_head_tilt"]
    assert "spacing" in index.refused[0].reason


def test_the_table_of_contents_of_a_disc_is_foreign(tmp_path):
    """Every exported CD has a DICOMDIR at its top; it must not make a run end with exit code 3."""
    from pydicom.fileset import FileSet

    write_phantom_series(tmp_path / "files", slices=4)
    disc = FileSet()
    for path in sorted((tmp_path / "files").iterdir()):
        disc.add(path)
    disc.write(tmp_path / "disc")
    index = find_series(tmp_path / "disc")
    assert [series.shape[2] for series in index.series] == [4]
    assert [(refusal.where, refusal.foreign) for refusal in index.refused] == [("DICOMDIR", True)]


def locked(monkeypatch, *folders):
    """Make folders unlistable also for root."""
    iterdir = Path.iterdir

    def listed(path):
        if path in folders:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", listed)


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    write_phantom_series(tmp_path / "good", slices=3)
    write_phantom_series(tmp_path / "locked", slices=3, patient="2")
    (tmp_path / "lost+found").mkdir()
    locked(monkeypatch, tmp_path / "locked", tmp_path / "lost+found")
    index = find_series(tmp_path)
    assert len(index.series) == 1
    assert [(r.where, r.reason, r.foreign) for r in index.refused] == [("locked", "cannot be looked into", False)]
    locked(monkeypatch, tmp_path)
    with pytest.raises(PermissionError):  # ends with exit code 74
        find_series(tmp_path)
