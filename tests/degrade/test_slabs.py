import numpy as np
import pytest

from bundle.degrade.slabs import PROFILES, ThickSlices, linear_weights

STEP = 1.0


def noise(depth=40, seed=0):
    return np.random.default_rng(seed).normal(0, 100, (4, 5, depth)).astype(np.float32)


def thick(thickness=5.0, **settings):
    return ThickSlices(thickness_mm=thickness, **settings)


@pytest.mark.parametrize("thickness", [0.3, 1.0])
def test_no_thicker_than_the_slices_is_the_identity(thickness):
    volume = noise()
    assert np.array_equal(thick(thickness).apply(volume, step_mm=STEP), volume)
    assert thick(thickness).margin(STEP) == 0


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("increment", [None, 2.5, 4.0])
@pytest.mark.parametrize("offset", [None, 0.7, 3.0])
def test_a_constant_stays(profile, increment, offset):
    volume = np.full((2, 3, 41), -123.0, np.float32)
    result = thick(5.0, profile=profile, increment_mm=increment, offset_mm=offset).apply(volume, step_mm=STEP)
    np.testing.assert_allclose(result, volume, rtol=1e-5)


@pytest.mark.parametrize(("thickness", "step"), [(5.0, 1.0), (3.0, 1.0), (4.0, 2.0), (5.0, 1.25)])
def test_thick_slices_conserve_the_mean(thickness, step):
    volume = noise(depth=60)
    slabs = volume @ thick(thickness).slab_weights(60, step).T
    np.testing.assert_allclose(slabs.mean(axis=2), volume.mean(axis=2), atol=0.02)
    result = thick(thickness).apply(volume, step_mm=step)
    np.testing.assert_allclose(result.mean(axis=2), volume.mean(axis=2), atol=0.02)


def test_slabs_are_averages_and_no_subsamples():
    weights = thick(5.0).slab_weights(20, STEP)
    assert weights.shape == (4, 20)
    np.testing.assert_allclose(weights, np.kron(np.eye(4), np.full((1, 5), 0.2)), atol=1e-12)
    # A slab that ends within a thin slice takes that part of it.
    np.testing.assert_allclose(thick(2.5, offset_mm=2.0).slab_weights(5, STEP)[0], [0, 0.3, 0.4, 0.3, 0], atol=1e-12)


@pytest.mark.parametrize("profile", PROFILES)
def test_the_full_width_at_half_maximum_is_the_thickness(profile):
    step = 0.05
    weights = ThickSlices(thickness_mm=5.0, offset_mm=15.0, increment_mm=100.0, profile=profile)
    row = weights.slab_weights(601, step)[0]
    assert np.count_nonzero(row >= row.max() / 2 * (1 + 1e-9)) * step == pytest.approx(5.0, abs=0.11)


def test_what_lies_between_is_interpolated_linearly():
    volume = np.broadcast_to(np.arange(40, dtype=np.float32), (2, 2, 40))
    result = thick(5.0).apply(volume, step_mm=STEP)
    np.testing.assert_allclose(result[0, 0, 2:38], np.arange(2, 38), atol=1e-4)  # a ramp is its own average
    assert (result[0, 0, :2] == result[0, 0, 2]).all() and (result[0, 0, 38:] == result[0, 0, 37]).all()


@pytest.mark.parametrize("profile", PROFILES)
def test_adjoint(profile):
    step = thick(4.0, offset_mm=1.3, increment_mm=3.0, profile=profile)
    x, y = noise(seed=1), noise(seed=2)
    forward = np.vdot(step.apply(x, step_mm=STEP).astype(np.float64), y)
    assert forward == pytest.approx(np.vdot(x.astype(np.float64), step.adjoint(y, step_mm=STEP)), rel=1e-4)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("step_mm", [1.0, 0.7])
def test_a_region_with_its_margin_is_a_part_of_the_whole(profile, step_mm):
    step = thick(5.0, offset_mm=2.2, increment_mm=4.0, profile=profile)
    volume, margin = noise(depth=90), step.margin(step_mm)
    whole = step.apply(volume, step_mm=step_mm)
    for first, last in ((30, 40), (0, 6), (84, 90), (41, 42)):
        low, high = max(first - margin, 0), min(last + margin, 90)
        part = step.apply(volume[:, :, low:high], step_mm=step_mm, first=low)
        np.testing.assert_allclose(part[:, :, first - low : last - low], whole[:, :, first:last], atol=1e-3)


def test_a_series_shorter_than_a_slab_becomes_its_mean():
    volume = noise(depth=2)
    result = thick(9.0).apply(volume, step_mm=STEP)
    np.testing.assert_allclose(result, np.repeat(volume.mean(axis=2, keepdims=True), 2, axis=2), rtol=1e-4)


def test_whole_slabs_are_those_that_more_slices_would_not_change():
    slabs = ThickSlices(thickness_mm=3.0, increment_mm=2.0, offset_mm=0.5)
    whole = slabs.whole(12, 0.8, first=10)
    assert 0 < whole.sum() < len(whole)
    more = slabs.slab_weights(32, 0.8)
    for inside, weights in zip(whole, slabs.slab_weights(12, 0.8, first=10), strict=True):
        padded = np.pad(weights, (10, 10))
        assert inside == np.isclose(more, padded, atol=1e-9).all(axis=1).any()


def test_linear_weights_at_and_between_and_beyond():
    weights = linear_weights(np.array([0.0, 2.0]), np.array([-1.0, 0.0, 0.5, 2.0, 3.0]))
    np.testing.assert_allclose(weights, [[1, 0], [1, 0], [0.75, 0.25], [0, 1], [0, 1]])


@pytest.mark.parametrize("wrong", [{"thickness_mm": 0}, {"increment_mm": -1}, {"profile": "round"}])
def test_impossible_slices_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ThickSlices(**{"thickness_mm": 5.0} | wrong)
