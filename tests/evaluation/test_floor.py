"""The floor is what the best estimator reaches on a known scene."""

import numpy as np
import pytest

from bundle.evaluation.floor import floor_hu, floor_values
from bundle.evaluation.measures import Target
from bundle.evaluation.methods import Problem


def test_closed_form():
    assert floor_hu(3, 4) == pytest.approx(12 / 5)
    assert floor_hu(10, 1000) == pytest.approx(10, rel=1e-3)
    assert floor_hu(10, 0.01) == pytest.approx(0.01, rel=1e-3)


def test_who_knows_the_anatomy_reaches_it_and_not_less():
    rng = np.random.default_rng(2)
    anatomy = np.full((160, 160, 4), 50.0)
    own, added = (rng.normal(0, sigma, anatomy.shape) for sigma in (10, 17))
    target_hu = (anatomy + own).astype(np.float32)
    poor = (target_hu + added).astype(np.float32)
    target = Target(target_hu, spacing_mm=(0.8, 0.8, 2.5))
    problem = Problem("k", poor, target_hu, target.spacing_mm, degradation=[{"kind": "low_dose", "dose": 0.25}])
    floor = floor_values(problem, target, target.slice_values(poor))
    # The conditional mean of the target, given poor and the anatomy.
    best = anatomy + (poor - anatomy) * 10**2 / (10**2 + 17**2)
    reached = target.slice_values(best.astype(np.float32))
    for name in ("rmse_hu", "rmse_hu_body", "psnr_1000"):
        np.testing.assert_allclose(floor[name], reached[name], rtol=0.03)


def test_without_soft_tissue_there_is_no_floor():
    air = np.full((64, 64, 2), -1000, np.float32)
    target = Target(air, spacing_mm=(1, 1, 1))
    assert floor_values(Problem("k", air, air, (1, 1, 1)), target, target.slice_values(air)) == {}


@pytest.mark.parametrize("kinds", [["thick_slices"], ["low_dose", "kernel"], []], ids=["thick", "blurred", "real pair"])
def test_there_is_none_where_more_than_the_dose_was_changed(kinds):
    """What an average takes away is no noise that was added, and a real partner's noise is its own: a method may well
    get below sigma e / sqrt(...)."""
    rng = np.random.default_rng(2)
    target_hu = rng.normal(50, 10, (160, 160, 4)).astype(np.float32)
    poor = (target_hu + target_hu[..., ::-1]) / 2
    target = Target(target_hu, spacing_mm=(0.8, 0.8, 2.5))
    steps = [{"kind": kind} for kind in kinds]
    problem = Problem("k", poor, target_hu, target.spacing_mm, degradation=steps)
    assert floor_values(problem, target, target.slice_values(poor)) == {}
