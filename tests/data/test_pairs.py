import numpy as np
import pytest
from phantom_series import phantom_uid, write_phantom_series

from bundle.data.pairs import check_pairs_option, pair_by_rule, pair_thick_thin
from bundle.data.sources import find_cases
from bundle.dicom.index import find_series
from bundle.errors import BundleError


def write(folder, name, *, spacing=1.0, slices=20, start=0.0, patient="p", **tags):
    """A series of a patient's study whose first slice lies at `start`."""
    write_phantom_series(
        folder / name,
        patient=patient,
        series=name,
        slices=slices,
        size=16,
        spacing=(0.8, 0.8, spacing),
        ImagePositionPatient=lambda k: ["-20", "-30.5", f"{start + k * spacing:g}"],
        **tags,
    )


def found(folder):
    pairs, refused = pair_thick_thin(find_series(folder).series)
    names = {phantom_uid(patient, name): name for patient in "pq" for name in NAMES}
    return {tuple(names[one.headers[0].SeriesInstanceUID] for one in pair) for pair in pairs}, {
        refusal.reason for refusal in refused
    }


NAMES = ("thin", "thick", "other", "sharp", "finer")


def test_thick_and_thin_of_one_study(tmp_path):
    write(tmp_path, "thin")
    write(tmp_path, "thick", spacing=5.0, slices=4, start=2.0)
    assert found(tmp_path) == ({("thin", "thick")}, set())


@pytest.mark.parametrize(
    "other",
    [
        {"patient": "q"},
        {"FrameOfReferenceUID": "1.2.3"},
        {"StudyInstanceUID": "1.2.3"},
        {"start": 200.0},
        {"spacing": 1.2},
        {"ImageOrientationPatient": ["0.9", "0", "-0.43589", "0", "1", "0"]},
    ],
    ids=lambda other: next(iter(other)),
)
def test_what_does_not_belong_together(tmp_path, other):
    write(tmp_path, "thin")
    settings = {"spacing": 5.0, "slices": 4, "start": 2.0} | other
    try:
        write(tmp_path, "thick", **settings)
        pairs, reasons = found(tmp_path)
    except BundleError:  # a series may be refused by itself
        return
    assert pairs == set() and reasons == {"no thick or thin partner in its study"}


def test_the_thin_one_of_the_same_kernel_is_preferred(tmp_path):
    write(tmp_path, "thick", spacing=5.0, slices=4, start=2.0)
    write(tmp_path, "sharp", spacing=0.5, slices=40, ConvolutionKernel="SHARP")
    write(tmp_path, "other", spacing=2.0, slices=10)
    write(tmp_path, "finer", spacing=1.0)
    pairs, _ = found(tmp_path)
    assert ("finer", "thick") in pairs and ("sharp", "thick") not in pairs


def test_find_cases_gives_the_thin_one_with_its_thick_partner(tmp_path):
    write(tmp_path, "thin")
    write(tmp_path, "thick", spacing=5.0, slices=4, start=2.0)
    write(tmp_path, "other", patient="q")
    source = find_cases(tmp_path, pairs="thick_thin")
    (case,) = source.cases
    assert len(case.files) == 20 and len(case.poor_files) == 4
    assert [refusal.reason for refusal in source.refused] == ["no thick or thin partner in its study"]


def test_a_rule_on_folders(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / "study", f"{name}", patient=name)
    write(tmp_path / "study", "a_low", patient="a")
    write(tmp_path / "study", "c_low", patient="c")
    write(tmp_path / "study", "b_low", patient="other")
    cases = find_cases(tmp_path).cases
    pairs, refused = pair_by_rule(cases, "*_low -> *")
    assert [case.label for case in pairs] == ["study/a"]
    assert all("a_low" in file for file in pairs[0].poor_files)
    reasons = sorted(refusal.reason for refusal in refused)
    assert reasons == [
        "has no good partner by the rule of --pairs",
        "has no poor partner by the rule of --pairs",
        "its partner by --pairs is of another patient",
    ]


def test_options():
    for nothing in (None, "none", "null", ""):
        assert check_pairs_option(nothing) is None
    assert check_pairs_option("thick_thin") == "thick_thin" and check_pairs_option("*/low -> */full")
    for wrong in ("thin_thick", "*_low", "a -> b", "* -> * -> *"):
        with pytest.raises(BundleError, match="neither thick_thin nor a rule"):
            check_pairs_option(wrong)


def test_no_pair_at_all_is_one_line(tmp_path):
    write(tmp_path, "thin")
    with pytest.raises(BundleError, match="no thick or thin partner"):
        find_cases(tmp_path, pairs="thick_thin")
    assert np.isfinite(len(find_cases(tmp_path).cases))
