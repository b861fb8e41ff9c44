"""The phantom measures what is known of it."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from bundle.evaluation.phantom import METRICS, RODS_HU, make_phantom


@pytest.fixture(scope="module")
def phantom():
    return make_phantom(dose=0.25, seed=5, slices=8)


def test_noise_is_that_of_the_dose(phantom):
    middle = slice(100, 156), slice(150, 200)
    own = (phantom.problem.target_hu - phantom.truth_hu)[middle].std()
    added = (phantom.problem.degraded_hu - phantom.problem.target_hu)[middle].std()
    assert own == pytest.approx(12, rel=0.15)
    assert added / own == pytest.approx(np.sqrt(3), rel=0.1)


def test_dose_makes_discs_visible_and_smoothing_blurs_rods(phantom):
    full, poor = (phantom.measure(v) for v in (phantom.problem.target_hu, phantom.problem.degraded_hu))
    assert list(full) == list(METRICS)
    assert full["detectability"] > poor["detectability"] > 1
    smooth = phantom.measure(gaussian_filter(phantom.problem.degraded_hu, (1, 1, 0)))
    for rod in RODS_HU:
        name = f"transfer50_{rod:.0f}_per_mm"
        assert full[name] == pytest.approx(poor[name], rel=0.15)
        assert smooth[name] < 0.75 * poor[name]


def test_the_same_seed_is_the_same_phantom():
    first, again, other = (make_phantom(dose=0.25, seed=seed, slices=1).problem.degraded_hu for seed in (5, 5, 7))
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.9
