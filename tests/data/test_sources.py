import json
from dataclasses import replace

import nibabel
import numpy as np
import pytest
from phantom_series import phantom_hu, write_phantom_series

from bundle.data.sources import find_cases
from bundle.errors import BundleError, ExitCode


@pytest.fixture
def dicom(tmp_path):
    root = tmp_path / "scans"
    for number in range(3):
        write_phantom_series(
            root / f"Doe^Jane{number}" / "ct", patient=f"Doe-{number}", seed=number, slices=4, PatientName="Doe^Jane"
        )
    return root


def write_nifti(path, *, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(phantom_hu(slices=4, size=16, seed=seed), np.diag([0.8, 0.8, 2.5, 1]))
    nibabel.save(image, path)


def test_dicom_folder(dicom):
    cases = find_cases(dicom).cases
    assert [case.key for case in cases] == sorted({case.key for case in cases}) and len(cases) == 3
    assert len({case.patient_key for case in cases}) == 3
    assert {case.label for case in cases} == {f"Doe^Jane{number}/ct" for number in range(3)}
    assert all(len(case.files) == 4 for case in cases)


def test_series_of_one_patient_share_the_patient_key(tmp_path):
    for series in ("thin", "thick"):
        write_phantom_series(tmp_path / series, series=series, slices=4)
    cases = find_cases(tmp_path).cases
    assert len(cases) == 2 and len({case.patient_key for case in cases}) == 1


def test_nifti_folder(tmp_path):
    write_nifti(tmp_path / "a" / "Doe_Jane.nii.gz", seed=0)
    write_nifti(tmp_path / "b.nii", seed=1)
    cases = find_cases(tmp_path).cases
    assert {case.label for case in cases} == {"a/Doe_Jane.nii.gz", "b.nii"}
    assert len({case.key for case in cases}) == len({case.patient_key for case in cases}) == 2


def test_a_stray_nifti_hides_no_dicom(dicom):
    write_nifti(dicom / "notes" / "mask.nii.gz")
    cases = find_cases(dicom).cases
    assert len(cases) == 4 and [case.label for case in cases if case.is_nifti] == ["notes/mask.nii.gz"]
    (dicom / "Doe^Jane0" / "ct" / "IM9999.dcm").write_bytes(b"")
    assert any("may be missing" in refusal.reason for refusal in find_cases(dicom).refused)


def test_keys_do_not_reveal_names(dicom, tmp_path):
    write_nifti(tmp_path / "nifti" / "Doe_Jane.nii.gz")
    for root in (dicom, tmp_path / "nifti"):
        for case in find_cases(root).cases:
            for text in (case.key, case.patient_key):
                assert "Doe" not in text and "Jane" not in text and "2.25" not in text


def test_keys_follow_the_content_not_the_place(dicom, tmp_path):
    moved = tmp_path / "elsewhere"
    before = [case.key for case in find_cases(dicom).cases]
    dicom.rename(moved)
    assert [case.key for case in find_cases(moved).cases] == before


def test_content_digest_follows_the_content(tmp_path):
    write_nifti(tmp_path / "a.nii", seed=0)
    before = find_cases(tmp_path).cases[0].content_digest()
    assert find_cases(tmp_path).cases[0].content_digest() == before
    write_nifti(tmp_path / "a.nii", seed=1)
    assert find_cases(tmp_path).cases[0].content_digest() != before


def test_only_cases_of_named_folders(dicom):
    write_nifti(dicom / "Doe^Jane0" / "again.nii.gz")
    found = find_cases(dicom, folders=["Doe^Jane0", "Doe^Jane2"]).cases
    assert {case.label for case in found} == {"Doe^Jane0/ct", "Doe^Jane0/again.nii.gz", "Doe^Jane2/ct"}
    assert find_cases(dicom, folders=["ct"], max_samples=2).cases == find_cases(dicom, folders=["ct"]).cases[:2]
    assert find_cases(dicom, folders=[]) == find_cases(dicom)
    with pytest.raises(BundleError, match=r"no usable case in the folders Doe\^Jane, Doe\^Jane3"):
        find_cases(dicom, folders=["Doe^Jane", "Doe^Jane1", "Doe^Jane3"])
    with pytest.raises(BundleError, match="no list"):
        find_cases(dicom, folders="Doe^Jane1")


def test_max_samples_takes_the_first_by_key(dicom):
    everything = find_cases(dicom).cases
    assert find_cases(dicom, max_samples=2).cases == everything[:2]
    assert find_cases(dicom, max_samples=9).cases == everything
    for wrong in (0, -1):
        with pytest.raises(BundleError, match="max_samples must be a whole number, at least 1"):
            find_cases(dicom, max_samples=wrong)


@pytest.mark.parametrize("make", ["unnamed", "missing", "file", "empty", "text", "localizer", "hub"])
def test_one_line_for_what_is_no_ct(tmp_path, make):
    root = tmp_path / "folder"
    if make != "missing":
        root.mkdir()
    if make == "file":
        root = root / "scan.txt"
        root.write_text("x")
    if make == "text":
        (root / "notes.json").write_text(json.dumps({"a": 1}))
    if make == "localizer":
        write_phantom_series(root, slices=4, Modality="MR", SOPClassUID="1.2.840.10008.5.1.4.1.1.4")
    with pytest.raises(BundleError) as caught:
        find_cases({"unnamed": None, "hub": "hf://datasets/a/b"}.get(make, root))
    message = str(caught.value)
    assert caught.value.exit_code == ExitCode.USER
    assert "\n" not in message and str(tmp_path) not in message


def test_uneven_series_are_cases_only_when_asked(tmp_path):
    write_phantom_series(tmp_path / "even", slices=4)
    write_phantom_series(tmp_path / "uneven", slices=6, drop=(2,), patient="phantom-2")
    refused = find_cases(tmp_path)
    assert len(refused.cases) == 1 and len(refused.refused) == 1
    found = find_cases(tmp_path, gaps="resample")
    assert sorted(case.resampled for case in found.cases) == [False, True] and not found.refused
    case = next(case for case in found.cases if case.resampled)
    assert len(case.files) == 5 and case.content_digest() != replace(case, resampled=False).content_digest()
    assert refused.cases[0].content_digest() in [case.content_digest() for case in found.cases]


def test_the_content_digest_knows_content_and_not_where_it_lies(tmp_path):
    for folder in ("here", "there/deeper"):
        write_phantom_series(tmp_path / folder, slices=3)
    write_phantom_series(tmp_path / "other", slices=3, seed=5)
    here, there, other = (find_cases(tmp_path / name).cases[0] for name in ("here", "there", "other"))
    assert here.content_digest() == there.content_digest() != other.content_digest()


def test_the_content_digest_of_an_archive(tmp_path):
    import shutil

    write_phantom_series(tmp_path / "series", slices=3)
    (tmp_path / "in").mkdir()
    shutil.make_archive(str(tmp_path / "in" / "a"), "zip", tmp_path / "series")
    case = find_cases(tmp_path / "in").cases[0]
    before = case.content_digest()
    assert before == find_cases(tmp_path / "in").cases[0].content_digest()
    (tmp_path / "in" / "a.zip").unlink()
    write_phantom_series(tmp_path / "series", slices=3, seed=9)
    shutil.make_archive(str(tmp_path / "in" / "a"), "zip", tmp_path / "series")
    assert find_cases(tmp_path / "in").cases[0].content_digest() != before
