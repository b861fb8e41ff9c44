"""The calibration of the uncertainty: fits what makes intervals right, and says how right they are elsewhere."""

import argparse

import numpy as np
import pytest
import torch
from phantom_series import write_phantom_series
from script_modules import load_script

from bundle.degrade.slabs import ThickSlices
from bundle.dicom.index import read_volume
from bundle.restoration.inferer import Piece
from bundle.restoration.registry import Calibration


@pytest.fixture(scope="module")
def script():
    return load_script("describe_weights")


def series(script, *, seed, scale, floor, noise_hu, constant_hu=0.0, voxels=20000, samples=8):
    """Normal errors whose true deviation is that of `scale`, `floor` and `constant_hu`."""
    rng = np.random.default_rng(seed)
    deviation = rng.gamma(4.0, noise_hu / 10, voxels)
    noise = np.full(voxels, noise_hu)
    true = Calibration(scale=scale, floor=floor, constant_hu=constant_hu, known=True)
    factor, added = true.factors(noise, samples=samples)
    error = np.abs(rng.standard_normal(voxels)) * np.hypot(factor * deviation, added)
    return script.coverage_table(error, deviation, noise, samples=samples)


def values(script, chosen):
    return [grid[k] for grid, k in zip(script.GRIDS.values(), chosen, strict=True)]


def test_what_made_the_errors_is_found(script):
    tables = [
        series(script, seed=seed, scale=1.4, floor=0.5, constant_hu=2.5, noise_hu=noise)
        for seed, noise in enumerate((4.0, 15.0, 40.0))
    ]
    scale, floor, constant_hu = values(script, script.fitted(tables))
    assert scale == pytest.approx(1.4, abs=0.3) and floor == pytest.approx(0.5, abs=0.15)
    assert constant_hu == pytest.approx(2.5, abs=0.5)
    normal = list(script.NORMAL_COVERAGE.values())
    for number, table in enumerate(tables):
        np.testing.assert_allclose(table[script.fitted(tables)], normal, atol=0.012)
        np.testing.assert_allclose(script.left_out(tables, number), normal, atol=0.05)


def test_the_samples_own_deviation_is_scaled_where_that_is_enough(script):
    tables = [series(script, seed=seed, scale=1.5, floor=0.0, noise_hu=noise) for seed, noise in ((0, 10), (1, 30))]
    scale, floor, constant_hu = values(script, script.fitted(tables))
    assert scale == pytest.approx(1.5, abs=0.1) and floor <= 0.1 and constant_hu <= 1.0


def test_the_mean_of_fewer_samples_is_less_sure(script):
    """Errors of few samples' mean, with the fit of many: the term 1/n is what tells them apart."""
    few = series(script, seed=1, scale=1.0, floor=0.5, noise_hu=20.0, samples=2)
    many = series(script, seed=2, scale=1.0, floor=0.5, noise_hu=20.0, samples=64)
    np.testing.assert_allclose(few[script.fitted([many])], list(script.NORMAL_COVERAGE.values()), atol=0.015)


@pytest.fixture
def thin_volume(tmp_path):
    write_phantom_series(tmp_path, slices=30, spacing=(0.8, 0.8, 1.0))
    return read_volume(str(tmp_path))


def test_slices_are_made_poor_as_the_task_says(script, thin_volume):
    options = argparse.Namespace(task="thin", slice_thickness_mm=[5.0, 3.0], size=32, slices=4)
    part = script.slab(thin_volume, options)
    expected = ThickSlices(thickness_mm=5.0).apply(thin_volume.array, step_mm=1.0)[16:48, 16:48, 13:17]
    np.testing.assert_allclose(part.poor, expected, atol=1e-3)  # as of the whole series
    np.testing.assert_array_equal(part.clean, thin_volume.array[16:48, 16:48, 13:17])
    assert part.noise_hu.shape == (4,) and part.spacing_mm == thin_volume.spacing_mm and part.first == 13
    quarter = script.slab(thin_volume, argparse.Namespace(**{**vars(options), "task": "denoise"}))
    assert quarter.poor.std() > quarter.clean.std() > part.poor.std()


def test_errors_of_thin_slices_are_of_those_that_keep_the_thick_ones(script, thin_volume, monkeypatch):
    options = argparse.Namespace(
        preset="tiny", task="thin", slice_thickness_mm=[5.0], size=32, slices=21, steps=4, num_samples=8
    )  # slices 4 to 24: thick ones over 5 to 9, 10 to 14, 15 to 19 and 20 to 24 are all there
    part = script.slab(thin_volume, options)
    averages = ThickSlices(thickness_mm=5.0).slab_weights(30, 1.0)[1:5, 4:25]
    wrong = np.random.default_rng(0).normal(0, 300, (32, 32, 4)) @ averages  # what the thick slices gainsay

    class Wrong:
        def __init__(self, **_):
            pass

        def pieces(self, volume, *_, **__):
            difference = torch.from_numpy((part.clean - part.poor + wrong).astype(np.float32))
            yield Piece(0, difference, torch.ones_like(difference), difference.shape[-1])

    monkeypatch.setattr(script, "RestorationInferer", Wrong)
    error, spread, noise = script.errors(None, part, options)
    assert np.abs(wrong).max() > 100 and error.max() < 0.05
    assert spread.shape == noise.shape == error.shape


def test_the_domain_of_weights_for_thin_slices_is_that_of_what_they_are_given(script, tmp_path):
    write_phantom_series(tmp_path, slices=30, spacing=(0.8, 0.8, 1.0))
    options = argparse.Namespace(task="thin", slice_thickness_mm=[5.0, 3.0], size=32, slices=4)
    domain = script.measured_domain([read_volume(str(tmp_path))], options)
    low, high = domain["thickness_mm"]
    assert 2.5 < low <= 3 and 5 <= high < 6, "the thick slices', not the thin ones that they were made of"
    assert domain["slice_mm"][0] <= 1 <= domain["slice_mm"][1], "the grid that is restored"


def test_numbers_are_named_by_deviations(script):
    assert script.by_deviations(np.array([[0.7, 0.6], [0.95, 0.9], [1.0, 0.99]])) == {
        "1": [0.7, 0.6], "2": [0.95, 0.9], "3": [1.0, 0.99],
    }  # fmt: skip
