"""Cubic interpolation finds the thick slices again and is better than linear on what is smooth."""

import numpy as np
import pytest
from scipy.interpolate import CubicSpline

from bundle.degrade.slabs import ThickSlices
from bundle.errors import BundleError
from bundle.evaluation.interpolation import cubic, interpolation_methods
from bundle.evaluation.methods import Problem

STEP = 1.0
Z = np.arange(40) * STEP
THIN = (100 * np.sin(Z / 5) * np.arange(1, 13).reshape(3, 4)[..., None]).astype(np.float32)


@pytest.mark.parametrize("offset", [None, 0.3, 2.0])
@pytest.mark.parametrize("thickness", [3.0, 5.0])
def test_the_spline_goes_through_the_very_thick_slices(offset, thickness):
    slabs = ThickSlices(thickness_mm=thickness, offset_mm=offset)
    poor = slabs.apply(THIN, step_mm=STEP)
    centres = slabs.centres_mm(len(Z), STEP)
    thick = THIN @ slabs.slab_weights(len(Z), STEP).T
    expected = CubicSpline(centres, thick, axis=2)(np.clip(Z, centres[0], centres[-1]))
    np.testing.assert_allclose(cubic(poor, slabs, step_mm=STEP), expected, atol=0.05)


def test_it_beats_linear_on_smooth_anatomy():
    slabs = ThickSlices(thickness_mm=3.0)
    poor = slabs.apply(THIN, step_mm=STEP)
    errors = [np.abs(x - THIN)[..., 4:-4].mean() for x in (poor, cubic(poor, slabs, step_mm=STEP))]
    assert errors[1] < 0.7 * errors[0]


def test_rows_are_there_for_thick_slices_only():
    assert interpolation_methods("low_dose") == [] == interpolation_methods("none")
    linear, spline, kept = interpolation_methods(["low_dose", "thick_slices"])
    steps = [{"kind": "thick_slices", "thickness_mm": 3.0, "offset_mm": 1.0, "profile": "box"}]
    slabs = ThickSlices(thickness_mm=3.0, offset_mm=1.0)
    problem = Problem("k", slabs.apply(THIN, step_mm=STEP), THIN, (1, 1, STEP), degradation=steps)
    np.testing.assert_array_equal(linear.restore(problem), problem.degraded_hu)
    np.testing.assert_array_equal(spline.restore(problem), cubic(problem.degraded_hu, slabs, step_mm=STEP))
    averages = slabs.slab_weights(len(Z), STEP)
    np.testing.assert_allclose(kept.restore(problem) @ averages.T, THIN @ averages.T, atol=0.01)
    assert np.abs((spline.restore(problem) - THIN) @ averages.T).max() > 1
    with pytest.raises(BundleError, match="not made thicker"):
        spline.restore(Problem("k", THIN, THIN, (1, 1, STEP)))
    with pytest.raises(BundleError, match="too short"):
        cubic(THIN[..., :3], ThickSlices(thickness_mm=5.0), step_mm=STEP)
