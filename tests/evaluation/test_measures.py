"""Every metric is measured, and what cannot be is named."""

import numpy as np
import pytest
from phantom_series import phantom_hu
from scipy.ndimage import gaussian_filter

from bundle.evaluation.measures import METRICS, SERIES_METRICS, SLICE_METRICS, Target

SPACING = (0.8, 0.8, 2.5)


def smooth_phantom(size=160, slices=3):
    clean = np.clip(phantom_hu(slices=slices, size=size), -1000, 1000)
    return gaussian_filter(clean, (1, 1, 0)).astype(np.float32)


@pytest.fixture(scope="module")
def target():
    noise = np.random.default_rng(3).normal(0, 10, (160, 160, 3))
    return Target((smooth_phantom() + noise).astype(np.float32), spacing_mm=SPACING)


def test_the_target_against_itself(target):
    slices, whole = target.slice_values(target.hu), target.series_values(target.hu, target.hu)
    assert list(slices) == list(SLICE_METRICS) and list(whole) == list(SERIES_METRICS)
    assert (slices["rmse_hu"] == 0).all() and np.isinf(slices["psnr_1000"]).all()
    for name in ("ssim_1000", "ssim_abdomen", "vif", "vif_benchmark"):
        np.testing.assert_allclose(slices[name], 1, atol=1e-6)
    assert whole["noise_ratio"] == 1 and whole["nps_distance"] == 0
    assert whole["edge_surface_percent"] == 0 and whole["residual_structure"] == 0
    assert whole["noise_hu"] == pytest.approx(11, rel=0.1)  # 10 and what smoothing left of the phantom's own
    assert all(whole[f"bias_{name}_hu"] == 0 for name in ("lung", "soft", "bone"))


def test_known_errors(target):
    shifted = target.hu + 7
    assert target.slice_values(shifted)["rmse_hu_body"] == pytest.approx(7, abs=1e-3)
    whole = target.series_values(shifted, target.hu)
    assert whole["bias_soft_hu"] == pytest.approx(7, abs=1e-3)
    assert whole["noise_ratio"] == pytest.approx(1) and whole["edge_surface_percent"] == pytest.approx(0, abs=0.1)
    blurred = gaussian_filter(target.hu, (1, 1, 0))
    whole = target.series_values(blurred, target.hu)
    assert whole["edge_surface_percent"] > 5 and whole["noise_ratio"] < 0.7
    assert whole["residual_structure"] > 0.02 and whole["nps_distance"] > 0.3


def test_how_sure_a_method_is_is_held_against_how_far_off_it_is(target):
    noise = np.random.default_rng(4).normal(0, 10, target.hu.shape).astype(np.float32)
    for deviation, expected in ((10, (68.27, 95.45)), (20, (95.45, 99.99)), (5, (38.3, 68.27))):
        whole = target.series_values(target.hu + noise, target.hu, np.full_like(noise, deviation))
        found = whole["coverage_1_percent"], whole["coverage_2_percent"]
        assert found == pytest.approx(expected, abs=1), deviation
    assert np.isnan(target.series_values(target.hu, target.hu)["coverage_1_percent"])
    assert "coverage_1_percent" not in target.problems  # nothing was claimed, so nothing is wrong
    target.series_values(target.hu, target.hu, np.zeros_like(noise))
    assert "no voxel" in target.problems.pop("coverage_1_percent")


def test_empty_masks_and_windows_are_named_and_the_rest_is_measured():
    air = Target(np.full((64, 64, 2), -1000, np.float32), spacing_mm=SPACING)
    slices = air.slice_values(air.hu + 5)
    whole = air.series_values(air.hu + 5, air.hu)
    assert slices["rmse_hu"] == pytest.approx(5) and whole["bias_air_hu"] == pytest.approx(5)
    assert np.isnan(slices["psnr_neuro"]).all() and np.isnan(whole["bias_lung_hu"])
    assert "window" in air.problems["psnr_neuro"] and "mask is empty" in air.problems["bias_lung_hu"]
    assert {"rmse_hu_body", "noise_hu", "edge_surface_mm", "residual_structure"} <= set(air.problems)
    small = Target(smooth_phantom(size=40), spacing_mm=SPACING)
    assert np.isnan(small.slice_values(small.hu)["vif"]).all() and "41 x 41" in small.problems["vif"]


@pytest.mark.parametrize(("size", "named"), [(6, {"ssim_1000", "ssim_abdomen"}), (10, {"ssim_1000"}), (11, set())])
def test_slices_smaller_than_a_window_of_ssim_are_named_and_the_rest_is_measured(size, named):
    hu = phantom_hu(slices=2, size=64)[20 : 20 + size, 20 : 20 + size]
    small = Target(hu, spacing_mm=SPACING)
    slices, whole = small.slice_values(hu + 7), small.series_values(hu + 7, hu)
    assert set(small.problems) & {"ssim_1000", "ssim_abdomen"} == named
    for name in ("ssim_1000", "ssim_abdomen"):
        assert np.isnan(slices[name]).all() == (name in named)
    assert all(f"{size} x {size} is smaller than the window" in small.problems[name] for name in named)
    assert slices["rmse_hu"] == pytest.approx(7) and whole["bias_soft_hu"] == pytest.approx(7)
    assert np.isfinite(slices["psnr_abdomen"]).all()


def test_every_number_says_its_unit():
    assert all(METRICS.values())
    assert all("HU" in METRICS[name] for name in METRICS if name.endswith("_hu"))
