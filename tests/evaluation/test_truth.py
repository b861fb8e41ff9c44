"""What the row 'truth' says of a scene whose truth is known: it is what that truth reads."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from bundle.evaluation.measures import Target
from bundle.evaluation.methods import Problem
from bundle.evaluation.truth import METRICS, truth_values

SPACING = (0.7, 0.7, 2.0)
SIZE, SLICES = 256, 10


@pytest.fixture(scope="module")
def truth():
    """A round body in air with round vessels, without noise."""
    rows, columns = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    hu = np.where(np.hypot(rows, columns) < 105, 50.0, -1000.0)
    for angle in np.arange(9) * 0.7:
        hu[np.hypot(rows - 80 * np.cos(angle), columns - 80 * np.sin(angle)) < 8.2] = 260
    return np.repeat(gaussian_filter(hu, 1.0)[:, :, None], SLICES, axis=2).astype(np.float32)


@pytest.fixture(scope="module")
def problem(truth):
    """Noise with a texture, as CT has, and three times its variance added."""
    rng = np.random.default_rng(5)
    own, added = (gaussian_filter(rng.normal(0, 1, truth.shape), (0.8, 0.8, 0)) for _ in range(2))
    target_hu = (truth + 18 * own / own.std()).astype(np.float32)
    degraded_hu = (target_hu + 18 * np.sqrt(3) * added / added.std()).astype(np.float32)
    return Problem("k", degraded_hu, target_hu, SPACING, degradation=[{"kind": "low_dose", "dose": 0.25}])


def read(problem, restored_hu):
    target = Target(problem.target_hu, spacing_mm=SPACING)
    values = target.series_values(restored_hu, problem.degraded_hu)
    return target, {name: values[name] for name in METRICS}


def test_it_is_what_the_truth_reads(problem, truth):
    target, actual = read(problem, truth)
    assert actual["edge_inner_percent"] > 15 and actual["residual_structure"] > 0.002, "the target's noise shows"
    said = truth_values(problem, target, truth)
    assert set(said) == set(METRICS)
    assert said["edge_inner_percent"] == pytest.approx(actual["edge_inner_percent"], abs=4)
    assert said["edge_surface_percent"] == pytest.approx(actual["edge_surface_percent"], abs=0.3)
    assert said["residual_structure"] == pytest.approx(actual["residual_structure"], abs=0.004)


def test_a_good_restoration_serves_for_the_truth(problem, truth):
    target, actual = read(problem, truth)
    left = gaussian_filter(problem.degraded_hu - truth, (2, 2, 0)) * 0.3
    said = truth_values(problem, target, gaussian_filter(truth, (0.4, 0.4, 0)) + left)
    assert said["edge_inner_percent"] == pytest.approx(actual["edge_inner_percent"], abs=4)
    assert said["residual_structure"] == pytest.approx(actual["residual_structure"], abs=0.006)


def test_a_target_without_noise_reads_itself(problem, truth):
    target = Target(truth, spacing_mm=SPACING)
    clean = replace(problem, target_hu=truth)
    said = truth_values(clean, target, truth)
    assert abs(said["edge_inner_percent"]) < 0.3 and abs(said["residual_structure"]) < 0.005


@pytest.mark.parametrize("steps", [(), ({"kind": "thick_slices"},)], ids=["real pair", "thick"])
def test_only_of_less_dose(problem, truth, steps):
    target = Target(problem.target_hu, spacing_mm=SPACING)
    assert truth_values(replace(problem, degradation=steps), target, truth) == {}
