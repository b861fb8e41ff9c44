import itertools

import numpy as np
import pytest
from training_fixtures import CountingTransform, prepare

from bundle.data.averaging import average
from bundle.data.levels import NoiseLevels
from bundle.data.prepared import prepare_cases
from bundle.data.sources import Case
from bundle.degrade.blur import InPlaneBlur
from bundle.degrade.composition import LowDose, apply_steps
from bundle.degrade.slabs import ThickSlices
from bundle.metrics.noise import noise_level


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("cases"), ["a"], spacing=(0.8, 0.8, 1.0), slices=30, size=128)[0]


def measured(case, steps):
    degraded = apply_steps(case.image_hu, steps, spacing_mm=case.spacing_mm, noise=case.noise)
    return noise_level(degraded)


def test_without_steps_it_is_the_scans_own(case):
    assert np.array_equal(NoiseLevels()(case, (), slice(2, 9)), np.array(case.noise_hu, np.float32)[2:9])


def test_it_grows_as_the_dose_falls_and_adds_in_quadrature(case):
    region = slice(2, 28)
    levels = [NoiseLevels()(case, (LowDose(dose=dose),), region) for dose in (1.0, 0.5, 0.25, 0.1)]
    assert np.array_equal(levels[0], np.array(case.noise_hu, np.float32)[region])
    assert all((low < high).all() for low, high in itertools.pairwise(levels))
    quantum, electronic = (np.array(x)[region] for x in (case.quantum_hu, case.electronic_hu))
    added = levels[2].astype(float) ** 2 - levels[0].astype(float) ** 2
    assert np.allclose(added, 3 * quantum**2 + 15 * electronic**2, rtol=1e-4)
    assert np.corrcoef(quantum, np.arange(30)[region])[0, 1] > 0.9  # the fixture's noise grows with the slice


def test_own_level_is_measured_and_one_for_single_slices(case):
    levels = [NoiseLevels().own_level(case, slices) for slices in (1, 2, 4)]
    assert levels[0] == 1.0
    assert levels[0] > levels[1] > levels[2] > 0.4  # the phantom's noise is independent: near 1 / sqrt(n)
    assert levels[2] == pytest.approx(0.5, rel=0.15)


def test_averages_have_the_level_measured_on_them(case):
    slabs = average(case.image_hu[:, :, :30], 3)
    levels = NoiseLevels()(case, (), slice(0, 30), slices=3)
    assert levels.shape == (10,)
    np.testing.assert_allclose(np.median(levels), np.median(noise_level(slabs)), rtol=0.1)


@pytest.mark.parametrize(
    "steps",
    [
        (LowDose(dose=0.25),),
        (ThickSlices(thickness_mm=5.0),),
        (LowDose(dose=0.25), ThickSlices(thickness_mm=5.0)),
        (ThickSlices(thickness_mm=3.0), LowDose(dose=0.25)),
        (InPlaneBlur(mtf50_per_mm=0.4),),
        (LowDose(dose=0.3), InPlaneBlur(mtf50_per_mm=0.4)),
        (LowDose(dose=0.4, current_amplitude=0.5, current_period_mm=30.0),),
    ],
    ids=["dose", "thick", "dose thick", "thick dose", "blur", "dose blur", "current"],
)
def test_levels_are_those_measured_on_the_degraded_image(case, steps):
    levels = NoiseLevels()(case, steps, slice(0, 30))
    found = measured(case, steps)
    inner = slice(5, 25)
    assert np.median(levels[inner] / found[inner]) == pytest.approx(1, abs=0.12)
    assert np.percentile(np.abs(np.log(levels[inner] / found[inner])), 80) < 0.25


def test_a_region_has_the_levels_of_the_whole(case):
    steps = (LowDose(dose=0.3, current_amplitude=0.4), ThickSlices(thickness_mm=4.0, offset_mm=1.0))
    levels = NoiseLevels()
    whole = levels(case, steps, slice(0, 30))
    for region in (slice(0, 4), slice(11, 15), slice(26, 30)):
        np.testing.assert_allclose(levels(case, steps, region), whole[region], rtol=1e-3)


def test_without_realisations_the_own_noise_decides(tmp_path):
    path = tmp_path / "one"
    path.write_text("one")
    source = Case(key="k", patient_key="p", files=(str(path),), label="")
    transform = CountingTransform(slices=6, realisations=0)
    ((found,), _) = prepare_cases([source], transform=transform, cache_dir=tmp_path / "c", recipe={}, realisations=0)
    level = NoiseLevels()(found, (InPlaneBlur(mtf50_per_mm=0.3),), slice(0, 6))
    assert (level < np.array(found.noise_hu)).all() and (level > 0).all()
