import json

import nibabel
import numpy as np
import pytest
from phantom_series import phantom_hu, write_phantom_series

from bundle.data.datalist import read_datalist
from bundle.errors import BundleError


@pytest.fixture
def root(tmp_path):
    for number in range(3):
        for dose in ("full", "low"):
            write_phantom_series(
                tmp_path / dose / f"p{number}", patient=f"p{number}", series=dose, seed=number, slices=4
            )
    return tmp_path


def write(root, content):
    path = root / "datalist.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def pair(number, **more):
    return {"image": f"low/p{number}", "label": f"full/p{number}", **more}


def test_pairs_and_single_volumes(root):
    path = write(root, {"training": [pair(0), pair(1), {"label": "full/p2"}], "name": "study"})
    cases, refused = read_datalist(path)
    assert not refused and [len(case.poor_files) for case in cases] == [4, 4, 0]
    assert all("full" in file for case in cases for file in case.files)
    assert all("low" in file for case in cases for file in case.poor_files)
    assert {case.side for case in cases} == {""}


def test_a_single_image_is_a_target(root):
    (case,), _ = read_datalist(write(root, [{"image": "full/p0"}]))
    assert len(case.files) == 4 and not case.poor_files


def test_folds_and_explicit_validation_decide_the_sides(root):
    folds = write(root, [pair(0, fold=0), pair(1, fold=1), pair(2, fold=2)])
    for fold in range(3):
        cases, _ = read_datalist(folds, validation_fold=fold)
        assert [case.side == "validation" for case in cases] == [number == fold for number in range(3)]
    explicit = write(root, {"training": [pair(0), pair(1)], "validation": [pair(2)]})
    assert [case.side for case in read_datalist(explicit)[0]] == ["train", "train", "validation"]


def test_a_patient_on_both_sides_is_refused(root):
    write_phantom_series(root / "full" / "again", patient="p0", series="again", slices=4, seed=9)
    for entries in (
        [pair(0, fold=0), {"label": "full/again", "fold": 1}],
        [pair(0, fold=0, patient="x"), pair(1, fold=1, patient="x")],
    ):
        with pytest.raises(BundleError, match="a patient in training and validation"):
            read_datalist(write(root, entries))


def test_bad_entries_are_told_and_the_rest_goes_on(root):
    (root / "empty").mkdir()
    entries = [pair(0), {"label": "full"}, {"image": "gone", "label": "full/p1"}, {"label": "empty"}, {"fold": 1}]
    entries += [{"label": "nothing.nii.gz"}]
    cases, refused = read_datalist(write(root, entries))
    assert len(cases) == 1 and [refusal.where for refusal in refused] == [f"entry {n}" for n in range(1, 6)]
    reasons = [refusal.reason for refusal in refused]
    for part, reason in zip(
        ("3 CT series", "does not exist", "empty", "neither", "does not exist"), reasons, strict=True
    ):
        assert part in reason and "\n" not in reason and str(root) not in reason


def test_nifti_entries(root):
    for name in ("a", "b"):
        image = nibabel.Nifti1Image(phantom_hu(slices=4, size=16, seed=ord(name)), np.diag([0.8, 0.8, 2.5, 1]))
        nibabel.save(image, root / f"{name}.nii.gz")
    (case,), _ = read_datalist(write(root, [{"image": "a.nii.gz", "label": "b.nii.gz", "patient": "one"}]))
    assert case.files == (str(root / "b.nii.gz"),) and case.poor_files == (str(root / "a.nii.gz"),)


@pytest.mark.parametrize("content", ["{", {"training": {}}, {"other": []}, [1], "3"])
def test_what_is_no_datalist_is_one_line(root, content):
    with pytest.raises(BundleError, match=r"datalist '?datalist.json"):
        read_datalist(write(root, content))
