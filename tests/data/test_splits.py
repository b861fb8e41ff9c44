from pathlib import Path

import pytest

from bundle.data.prepared import PreparedCase
from bundle.data.splits import OTHER_PATIENTS, SAME_PATIENT, Part, split, split_slices
from bundle.errors import BundleError


def case(number, *, patient=None, slices=40, folder="a"):
    return PreparedCase(
        folder=Path("nowhere"),
        key=f"key{number}",
        patient_key=patient or f"patient{number}",
        label=f"{folder}/scan{number}",
        shape=(64, 64, slices),
        spacing_mm=(1.0, 1.0, 1.0),
        noise_hu=(1.0,) * slices,
        quantum_hu=(1.0,) * slices,
        electronic_hu=(1.0,) * slices,
        realisations=1,
    )


def patients(parts):
    return {part.case.patient_key for part in parts}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("number", [2, 3, 10, 40])
def test_no_patient_is_on_both_sides(number, seed):
    cases = [case(i, patient=f"patient{i // 2}") for i in range(2 * number)]
    found = split(cases, patch_slices=8, seed=seed)
    assert found.validation_on == OTHER_PATIENTS
    assert patients(found.train) and patients(found.validation)
    assert not patients(found.train) & patients(found.validation)
    # Every case is used, whole.
    assert sorted(part.case.key for part in found.train + found.validation) == sorted(c.key for c in cases)
    assert all((part.start, part.stop) == (0, 40) for part in found.train + found.validation)


def test_adding_patients_moves_nobody():
    few = split([case(i) for i in range(30)], patch_slices=8)
    many = split([case(i) for i in range(90)], patch_slices=8)
    assert patients(few.train) <= patients(many.train)
    assert patients(few.validation) <= patients(many.validation)


def test_neither_order_nor_number_of_series_matters():
    cases = [case(i) for i in range(20)]
    more = [*reversed(cases), case(99, patient="patient3")]
    assert patients(split(cases, patch_slices=8).validation) == patients(split(more, patch_slices=8).validation)


def test_fraction_is_kept_roughly_and_the_seed_draws():
    cases = [case(i) for i in range(400)]
    share = len(split(cases, patch_slices=8, fraction=0.2).validation) / 400
    assert 0.14 < share < 0.26
    draws = {frozenset(patients(split(cases, patch_slices=8, seed=seed).validation)) for seed in range(3)}
    assert len(draws) == 3


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_both_sides_have_somebody(fraction):
    found = split([case(i) for i in range(3)], patch_slices=8, fraction=fraction)
    assert found.train and found.validation


@pytest.mark.parametrize("slices,patch", [(20, 8), (40, 8), (41, 4), (167, 8), (11, 4)])
def test_only_patient_validates_on_the_last_fifth_a_patch_apart(slices, patch):
    found = split([case(0, slices=slices)], patch_slices=patch)
    (train,), (validation,) = found.train, found.validation
    assert found.validation_on == SAME_PATIENT
    assert validation.stop == slices and validation.stop - validation.start == slices // 5
    assert train.start == 0 and validation.start - train.stop == patch
    assert train.stop >= patch


def test_longest_series_of_the_only_patient():
    cases = [case(0, patient="p", slices=20), case(1, patient="p", slices=60)]
    assert patients(split(cases, patch_slices=8).train) == {"p"}
    assert split(cases, patch_slices=8).train[0].case.key == "key1"


@pytest.mark.parametrize("slices", [1, 8, 18])
def test_too_few_slices(slices):
    with pytest.raises(BundleError, match=rf"has {slices} slices, too few .*num_slices"):
        split_slices(case(0, slices=slices), patch_slices=8)
    split_slices(case(0, slices=20), patch_slices=8)


def test_named_folders():
    cases = [case(0, folder="a"), case(1, folder="held/out"), case(2, folder="b")]
    found = split(cases, patch_slices=8, folders=["out", "b"])
    assert patients(found.validation) == {"patient1", "patient2"} and patients(found.train) == {"patient0"}
    assert found.train == (Part.whole(cases[0]),)


def test_series_of_a_validation_patient_elsewhere_do_not_train():
    cases = [case(0, patient="p", folder="a"), case(1, patient="p", folder="b"), case(2, folder="b")]
    found = split(cases, patch_slices=8, folders=["a"])
    assert patients(found.validation) == {"p"} and patients(found.train) == {"patient2"}


@pytest.mark.parametrize("number", [1, 3])
def test_misspelt_folder(number):
    with pytest.raises(BundleError, match="validation folder 'aa' holds no usable case"):
        split([case(i) for i in range(number)], patch_slices=8, folders=["aa"])


@pytest.mark.parametrize("number", [1, 3])
def test_nobody_left_to_train(number):
    with pytest.raises(BundleError, match="no case is left to train on"):
        split([case(i) for i in range(number)], patch_slices=8, folders=["a"])
