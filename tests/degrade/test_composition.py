import itertools

import numpy as np
import pytest

from bundle.degrade.blur import InPlaneBlur
from bundle.degrade.composition import (
    KINDS,
    DegradationSampling,
    LowDose,
    apply_steps,
    describe_steps,
    margins,
    parse_kinds,
    sample_dose,
)
from bundle.degrade.low_dose import apply_dose
from bundle.degrade.slabs import ThickSlices
from bundle.errors import BundleError

SPACING = (0.8, 0.8, 1.0)
SAMPLING = DegradationSampling(degradation=list(KINDS), current_amplitude=0.3, clean_fraction=0.2)


def arrays(count=3, depth=30):
    rng = np.random.default_rng(0)
    return [rng.normal(0, 100, (24, 20, depth)).astype(np.float32) for _ in range(count)]


def test_no_steps_are_the_identity_on_a_copy():
    (volume,) = arrays(1)
    result = apply_steps(volume, (), spacing_mm=SPACING)
    assert np.array_equal(result, volume) and not np.shares_memory(result, volume)


def test_steps_of_zero_strength_are_the_identity():
    volume, quantum, electronic = arrays()
    steps = (LowDose(dose=1.0), ThickSlices(thickness_mm=1.0), InPlaneBlur(mtf50_per_mm=np.inf))
    for order in itertools.permutations(steps):
        result = apply_steps(volume, order, spacing_mm=SPACING, noise=lambda _: (quantum, electronic))
        assert np.array_equal(result, volume)


def test_steps_are_applied_in_order():
    volume, quantum, electronic = arrays()
    dose, thick, blur = LowDose(dose=0.25, sign=-1.0), ThickSlices(thickness_mm=5.0), InPlaneBlur(mtf50_per_mm=0.3)

    def run(*steps):
        return apply_steps(volume, steps, spacing_mm=SPACING, noise=lambda _: (quantum, electronic))

    noisy = apply_dose(volume, -quantum, -electronic, dose=0.25)
    assert np.array_equal(run(dose, thick), thick.apply(noisy, step_mm=1.0))
    assert np.array_equal(
        run(thick, dose), apply_dose(thick.apply(volume, step_mm=1.0), -quantum, -electronic, dose=0.25)
    )
    expected = blur.apply(thick.apply(noisy, step_mm=1.0), spacing_mm=SPACING)
    assert np.array_equal(run(dose, thick, blur), expected)
    # Noise before thick slices is averaged, noise after them is not.
    assert np.std(run(dose, thick) - run(thick)) < 0.6 * np.std(run(thick, dose) - run(thick))


def test_the_same_seed_replays_and_drawing_changes_nothing():
    volume, quantum, electronic = arrays()
    results = []
    for _ in range(2):
        steps = SAMPLING.draw(np.random.default_rng(5), realisations=4)
        assert steps == SAMPLING.draw(np.random.default_rng(5), realisations=4)
        results.append(apply_steps(volume, steps, spacing_mm=SPACING, noise=lambda _: (quantum, electronic)))
    assert np.array_equal(*results)
    assert steps != SAMPLING.draw(np.random.default_rng(6), realisations=4)


def test_drawn_parameters_lie_in_their_ranges():
    drawn = [SAMPLING.draw(np.random.default_rng(seed), realisations=3) for seed in range(400)]
    clean = [steps for steps in drawn if not steps]
    assert 0.12 < len(clean) / len(drawn) < 0.28
    for low_dose, thick, blur in (steps for steps in drawn if steps):
        assert 0.1 <= low_dose.dose <= 1 and low_dose.realisation in range(3) and low_dose.sign in (-1, 1)
        assert 0 <= low_dose.current_amplitude <= 0.3
        assert thick.thickness_mm == 5 and 0 <= thick.offset_mm <= 5 and blur.mtf50_per_mm == 0.3


@pytest.mark.parametrize("kinds", [["thick_slices"], ["low_dose", "kernel"]])
def test_a_full_dose_is_degraded_otherwise(kinds):
    sampling = DegradationSampling(degradation=kinds, dose_range=(1.0, 1.0), clean_fraction=0.0)
    assert len(sampling.draw(np.random.default_rng(0))) == len(kinds)


def test_parameters_are_recorded_as_plain_values():
    steps = SAMPLING.draw(np.random.default_rng(1))
    described = describe_steps(steps)
    assert [step["kind"] for step in described] == list(KINDS)
    assert all(type(value) in (str, int, float) for step in described for value in step.values())
    assert described[0]["dose"] == steps[0].dose and described[1]["offset_mm"] == steps[1].offset_mm


def test_the_tube_current_changes_the_dose_along_the_series_and_never_above_full():
    step = LowDose(dose=0.5, current_amplitude=0.4, current_period_mm=100.0)
    doses = step.doses(200, step_mm=1.0)
    assert doses.mean() == pytest.approx(0.5, rel=1e-3)
    assert doses.max() == pytest.approx(0.7) and doses.min() == pytest.approx(0.3)
    np.testing.assert_allclose(step.doses(50, step_mm=1.0, first=100), doses[100:150])
    assert LowDose(dose=0.9, current_amplitude=0.5).doses(400, step_mm=1.0).max() == 1.0
    assert LowDose(dose=0.5).doses(9, step_mm=1.0) == 0.5
    # Noise follows: unit noise times the root of what the dose leaves out, slice by slice.
    unit = np.ones((2, 2, 200), np.float32)
    added = apply_dose(np.zeros_like(unit), unit, 0 * unit, dose=doses)
    np.testing.assert_allclose(added[0, 0], np.sqrt(1 / doses - 1), rtol=1e-5)


def test_margins_add_up():
    assert margins((), SPACING) == (0, 0) == margins((LowDose(dose=0.5),), SPACING)
    blur, thick = InPlaneBlur(mtf50_per_mm=0.3), ThickSlices(thickness_mm=5)
    assert margins((blur, thick), SPACING) == (blur.margin(SPACING), thick.margin(1.0))


def test_kinds_of_a_config():
    assert parse_kinds("low_dose") == ("low_dose",)
    assert parse_kinds("none") == parse_kinds(None) == parse_kinds([]) == parse_kinds(["none"]) == ()
    assert parse_kinds(["thick_slices", "low_dose"]) == ("thick_slices", "low_dose")
    for wrong, message in (("noise", "unknown"), (["kernel", "kernel"], "twice")):
        with pytest.raises(BundleError, match=message):
            parse_kinds(wrong)


def test_only_thick_slices_need_thin_ones():
    thick = DegradationSampling(degradation="thick_slices", slice_thickness_mm=[3.0, 5.0])
    assert thick.thickens(1.0) and not thick.thickens(4.0)
    assert DegradationSampling().thickens(8.0)


@pytest.mark.parametrize(
    "wrong",
    [{"degradation": "dust"}, {"slice_thickness_mm": []}, {"mtf50_per_mm": [-1]}, {"slice_profile": "flat"}],
)
def test_wrong_settings_are_one_line(wrong):
    with pytest.raises(BundleError):
        DegradationSampling(**wrong)


def test_low_dose_needs_noise():
    with pytest.raises(ValueError, match="needs noise"):
        apply_steps(arrays(1)[0], (LowDose(dose=0.5),), spacing_mm=SPACING)


def test_doses_are_log_uniform_with_clean_ones():
    rng = np.random.default_rng(0)
    doses = np.array([sample_dose(rng, 0.1, 0.9, 0.2) for _ in range(4000)])
    clean = doses == 1
    assert clean.mean() == pytest.approx(0.2, abs=0.03)
    assert doses[~clean].min() >= 0.1
    assert doses[~clean].max() <= 0.9
    assert np.log(doses[~clean]).mean() == pytest.approx(np.log(0.1 * 0.9) / 2, abs=0.04)
    assert sample_dose(np.random.default_rng(1), 0.1, 0.9, 0.2) == sample_dose(np.random.default_rng(1), 0.1, 0.9, 0.2)


@pytest.mark.parametrize("limits", [(0, 0.5, 0), (0.5, 0.1, 0), (0.5, 1.1, 0), (0.1, 0.5, 2)])
def test_impossible_dose_ranges_are_refused(limits):
    with pytest.raises(BundleError, match=r"dose must|clean_fraction must"):
        sample_dose(np.random.default_rng(0), *limits)
    with pytest.raises(BundleError, match=r"dose must|clean_fraction must"):
        DegradationSampling(dose_range=limits[:2], clean_fraction=limits[2])
