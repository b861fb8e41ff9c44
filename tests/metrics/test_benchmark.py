"""The numbers of ldct-benchmark, from its formulas written out a second time."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from skimage.metrics import mean_squared_error, structural_similarity

from bundle.metrics.benchmark import (
    WINDOWS,
    benchmark_vif,
    fidelity,
    window_is_empty,
    window_psnr,
    window_ssim,
    windowed,
)
from bundle.metrics.vif import vif

RNG = np.random.default_rng(5)
TARGET = RNG.uniform(-1500, 2500, (64, 72))
IMAGE = TARGET + RNG.normal(0, 30, TARGET.shape)


def as_published(x, centre, width):
    """The benchmark's windowing of HU + 1024, case by case."""
    lower, upper = centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2
    result = np.empty_like(x)
    result[x <= lower] = 0
    inside = (x > lower) & (x <= upper)
    result[inside] = (x[inside] - (centre - 0.5)) / (width - 1) + 0.5
    result[x > upper] = 1
    return result


@pytest.mark.parametrize("name", WINDOWS)
def test_windows_psnr_and_ssim_are_the_benchmarks(name):
    centre, width = WINDOWS[name]
    target, image = (as_published(x + 1024, centre + 1024, width) for x in (TARGET, IMAGE))
    np.testing.assert_allclose(windowed(TARGET, WINDOWS[name]), target, atol=1e-12)
    expected = 10 * np.log10(1 / mean_squared_error(target, image))
    assert window_psnr(IMAGE, TARGET, WINDOWS[name]) == pytest.approx(expected, abs=1e-9)
    expected = structural_similarity(target, image, data_range=1.0)
    assert window_ssim(IMAGE, TARGET, WINDOWS[name]) == pytest.approx(expected, abs=1e-9)


def test_vif_is_taken_on_clipped_values():
    target, image = (np.clip(x + 1024, 0, 2924) for x in (TARGET, IMAGE))
    assert fidelity(IMAGE, TARGET) == pytest.approx(vif(target, image))
    # The benchmark's call has the two the other way round, and its published table is of that.
    assert benchmark_vif(IMAGE, TARGET) == pytest.approx(vif(image, target))
    smooth = gaussian_filter(TARGET, 1)
    assert benchmark_vif(smooth, TARGET) != pytest.approx(fidelity(smooth, TARGET), rel=0.05), "the order matters"


def test_equal_slices():
    for window in WINDOWS.values():
        assert window_psnr(TARGET, TARGET, window) == np.inf
        assert window_ssim(TARGET, TARGET, window) == pytest.approx(1)
        assert window_ssim(IMAGE, TARGET, window) == pytest.approx(window_ssim(TARGET, IMAGE, window))


def test_a_window_without_voxels_is_noticed():
    assert window_is_empty(np.full((8, 8), -1000.0), WINDOWS["neuro"])
    assert not window_is_empty(TARGET, WINDOWS["neuro"])


def test_slices_smaller_than_the_window_of_ssim_are_named():
    assert window_ssim(TARGET[:7, :7], TARGET[:7, :7], WINDOWS["chest"]) == pytest.approx(1)
    with pytest.raises(ValueError, match="6 x 72 is smaller than the window of 7 x 7"):
        window_ssim(IMAGE[:6], TARGET[:6], WINDOWS["chest"])
