import time

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from bundle.metrics.noise import FLOOR_HU, noise_level, nps_distance, nps_radial


def white(sigma: float, *, shape=(256, 256, 4), seed=0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, sigma, shape).astype(np.float32)


def anatomy(shape=(256, 256, 4)) -> np.ndarray:
    """A body with organs and vessels in air."""
    rows, columns = np.mgrid[: shape[0], : shape[1]] - (shape[0] - 1) / 2
    hu = np.where((rows / 90) ** 2 + (columns / 115) ** 2 < 1, -90.0, -1000.0)
    hu[(rows / 80) ** 2 + (columns / 105) ** 2 < 1] = 40
    for k, (row, column) in enumerate(np.random.default_rng(9).uniform(-60, 60, (60, 2))):
        hu[np.hypot(rows - row, columns - column) < 2 + k % 7] += 40 - 20 * (k % 5)
    return np.repeat(gaussian_filter(hu, 0.8)[:, :, None], shape[2], axis=2).astype(np.float32)


@pytest.mark.parametrize("sigma", [3.0, 30.0])
def test_white_noise_is_recovered(sigma):
    levels = noise_level(white(sigma))
    assert levels.shape == (4,)
    assert levels.dtype == np.float32
    np.testing.assert_allclose(levels, sigma, rtol=0.05)


@pytest.mark.parametrize("sigma", [5.0, 10.0, 40.0])
def test_anatomy_does_not_count_as_noise(sigma):
    np.testing.assert_allclose(noise_level(anatomy() + white(sigma)), sigma, rtol=0.1)
    assert (noise_level(anatomy()) < 1).all()


def test_noise_adds_in_quadrature_also_when_correlated():
    first, second = (gaussian_filter(white(60, seed=s), (0.8, 0.8, 0)) for s in (1, 2))
    levels = [noise_level(anatomy() + noise) ** 2 for noise in (first, second, first + second)]
    np.testing.assert_allclose(levels[2], levels[0] + levels[1], rtol=0.1)


def test_noise_is_in_proportion():
    noise = gaussian_filter(white(60), (0.8, 0.8, 0))
    np.testing.assert_allclose(noise_level(anatomy() + 3 * noise), 3 * noise_level(anatomy() + noise), rtol=0.05)


def test_linear_ramps_and_offsets_are_no_noise():
    rows, columns = np.mgrid[:64, :64]
    ramp = (0.5 * rows - 0.8 * columns)[:, :, None].astype(np.float32)
    assert noise_level(ramp) == pytest.approx(FLOOR_HU)


@pytest.mark.parametrize(
    "volume",
    [
        np.full((64, 64, 2), -1000, np.float32),
        np.full((64, 64, 2), 40, np.int16),
        np.zeros((5, 5, 1), np.float32),
        np.full((64, 64, 1), np.nan, np.float32),
        -1000 + white(10, shape=(64, 64, 2)),
    ],
)
def test_every_slice_has_a_level(volume):
    levels = noise_level(volume)
    assert np.isfinite(levels).all()
    assert (levels >= np.float32(FLOOR_HU)).all()


def test_slices_are_measured_one_by_one():
    volume = anatomy() + white(1) * np.array([5, 10, 20, 40], np.float32)
    np.testing.assert_array_equal(noise_level(volume)[2:], noise_level(volume[:, :, 2:]))
    assert (np.diff(noise_level(volume)) > 0).all()


def test_a_slice_is_fast():
    volume = white(10, shape=(512, 512, 8))
    noise_level(volume)
    durations = []
    for _ in range(3):
        start = time.perf_counter()
        noise_level(volume)
        durations.append(time.perf_counter() - start)
    assert min(durations) / 8 < 0.02  # 4 ms alone; other work on the machine may double it


def test_spectrum_of_white_noise_is_flat_and_its_density_known():
    frequency, nps = nps_radial(white(20, shape=(256, 256, 40)), spacing_mm=(0.5, 0.5))
    assert frequency[-1] == pytest.approx(1.0)
    np.testing.assert_allclose(nps[3:], 20**2 * 0.25, rtol=0.12)
    assert nps[3:].mean() == pytest.approx(20**2 * 0.25, rel=0.02)


def test_spectrum_ignores_slow_trends():
    rows, columns = np.mgrid[:64, :64] / 64
    trend = (300 * rows**2 - 100 * rows * columns + 50)[:, :, None]
    noise = white(5, shape=(64, 64, 1))
    flat, sloped = (nps_radial(v, spacing_mm=(1, 1, 5))[1] for v in (noise, noise + trend))
    np.testing.assert_allclose(sloped, flat, rtol=1e-3)


def test_regions_are_where_they_are_asked_for():
    volume = np.zeros((128, 128, 2), np.float32)
    volume[64:, 64:, 1] = white(10, shape=(64, 64))
    _, there = nps_radial(volume, spacing_mm=(1, 1), centres=[(96, 96, 1)])
    _, elsewhere = nps_radial(volume, spacing_mm=(1, 1), centres=[(32, 32, 1)])
    assert there.mean() > 50
    assert elsewhere.max() < 1e-9
    with pytest.raises(ValueError, match="leaves the volume"):
        nps_radial(volume, spacing_mm=(1, 1), centres=[(20, 64, 0)])
    with pytest.raises(ValueError, match="centres is empty"):
        nps_radial(volume, spacing_mm=(1, 1), centres=[])


def test_distance_of_spectra():
    nps = np.array([1.0, 2.0, 3.0])
    assert nps_distance(nps, nps) == 0
    assert nps_distance(10 * nps, nps) == pytest.approx(1)
    assert nps_distance(nps, 10 * nps) == pytest.approx(1)
    with pytest.raises(ValueError, match="same frequencies"):
        nps_distance(nps, nps[:2])
