"""The calibration of the uncertainty: fits what makes intervals right, and says how right they are elsewhere."""

import argparse
import importlib.util
from pathlib import Path

import numpy as np
import pytest
from phantom_series import write_phantom_series

from bundle.degrade.slabs import ThickSlices
from bundle.dicom.index import read_volume

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("describe_weights", ROOT / "scripts" / "describe_weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def series(script, *, seed, scale, floor, noise_hu, voxels=20000):
    """Normal errors whose true deviation is that of `scale` and `floor`."""
    rng = np.random.default_rng(seed)
    deviation = rng.gamma(4.0, noise_hu / 10, voxels)
    noise = np.full(voxels, noise_hu)
    error = np.abs(rng.standard_normal(voxels)) * np.hypot(scale * deviation, floor * noise)
    return script.coverage_table(error, deviation, noise)


def test_the_samples_own_deviation_is_scaled_where_that_is_enough(script):
    tables = [series(script, seed=seed, scale=1.5, floor=0.0, noise_hu=noise) for seed, noise in ((0, 10), (1, 30))]
    scale, floor = script.fitted(tables, script.FLOORS[:1])
    assert script.SCALES[scale] == pytest.approx(1.5, abs=0.05) and script.FLOORS[floor] == 0
    for number in (0, 1):
        covered = script.left_out(tables, number, script.FLOORS[:1])
        np.testing.assert_allclose(covered, list(script.NORMAL_COVERAGE.values()), atol=0.015)


def test_a_floor_mends_what_a_scale_cannot(script):
    """Series whose samples spread too little by different amounts, and whose error goes with their noise."""
    tables = [series(script, seed=seed, scale=0.5, floor=0.7, noise_hu=10 * (seed + 1)) for seed in range(3)]
    spread_less = script.coverage_table(*_as_given(script, scale=0.5, floor=0.7))
    plain = [script.left_out([*tables, spread_less], k, script.FLOORS[:1]) for k in range(4)]
    floored = [script.left_out([*tables, spread_less], k, script.FLOORS) for k in range(4)]
    assert script.worst(floored) < 0.03 < script.worst(plain)


def _as_given(script, *, scale, floor):
    """Samples with half the spread for the same error."""
    rng = np.random.default_rng(9)
    deviation = rng.gamma(4.0, 1.0, 20000)
    noise = np.full(20000, 20.0)
    return np.abs(rng.standard_normal(20000)) * np.hypot(scale * deviation, floor * noise), deviation / 2, noise


def test_slices_are_made_poor_as_the_task_says(script, tmp_path):
    write_phantom_series(tmp_path, slices=30, spacing=(0.8, 0.8, 1.0))
    volume = read_volume(str(tmp_path))
    options = argparse.Namespace(task="thin", slice_thickness_mm=5.0, size=32, slices=4)
    poor, clean, level, spacing = script.slab(volume, options)
    expected = ThickSlices(thickness_mm=5.0).apply(volume.array, step_mm=1.0)[16:48, 16:48, 13:17]
    np.testing.assert_allclose(poor, expected, atol=1e-3)  # as of the whole series
    np.testing.assert_array_equal(clean, volume.array[16:48, 16:48, 13:17])
    assert level.shape == (4,) and spacing == volume.spacing_mm
    quarter, clean, *_ = script.slab(volume, argparse.Namespace(**{**vars(options), "task": "denoise"}))
    assert quarter.std() > clean.std() > poor.std()


def test_numbers_are_named_by_deviations(script):
    assert script.by_deviations(np.array([[0.7, 0.6], [0.95, 0.9], [1.0, 0.99]])) == {
        "1": [0.7, 0.6], "2": [0.95, 0.9], "3": [1.0, 0.99],
    }  # fmt: skip
