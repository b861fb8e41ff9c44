"""The transfer function of a rod blurred by a known Gaussian."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from bundle.metrics.transfer import frequency_at, task_transfer

SPACING = (0.5, 0.5)


def rod(sigma_mm: float, *, contrast=100.0, noise=0.0, fine=5, size=96) -> np.ndarray:
    rows, columns = (np.mgrid[: size * fine, : size * fine] + 0.5) / fine - size / 2 - 0.3
    disc = np.where(np.hypot(rows, columns) * SPACING[0] < 10, contrast, 0.0)
    disc = gaussian_filter(disc, sigma_mm / SPACING[0] * fine)[fine // 2 :: fine, fine // 2 :: fine]
    return disc + np.random.default_rng(0).normal(0, noise, disc.shape)


CENTRE = (96 / 2 - 0.5 + 0.3, 96 / 2 - 0.5 + 0.3)


@pytest.mark.parametrize("sigma", [0.5, 0.8])
@pytest.mark.parametrize("contrast", [100.0, -300.0])
def test_a_gaussian_blur_has_its_closed_form(sigma, contrast):
    frequencies, transfer = task_transfer(
        rod(sigma, contrast=contrast), centre=CENTRE, radius_mm=10, spacing_mm=SPACING
    )
    assert transfer[0] == 1
    for level in (0.5, 0.1):
        expected = np.sqrt(np.log(1 / level) / 2) / (np.pi * sigma)
        assert frequency_at(frequencies, transfer, level) == pytest.approx(expected, rel=0.05)


def test_noise_hardly_matters_to_a_mean_of_many_slices():
    clean, noisy = (
        frequency_at(*task_transfer(rod(0.7, noise=n), centre=CENTRE, radius_mm=10, spacing_mm=SPACING), 0.5)
        for n in (0, 3)
    )
    assert noisy == pytest.approx(clean, rel=0.05)


def test_frequencies_between_samples_and_outside():
    assert frequency_at(np.array([0.0, 1, 2]), np.array([1.0, 0.6, 0.2]), 0.5) == pytest.approx(1.25)
    assert frequency_at(np.array([0.0, 1]), np.array([1.0, 0.9]), 0.5) == 1


def test_no_contrast_is_named():
    with pytest.raises(ValueError, match="no contrast"):
        task_transfer(np.zeros((96, 96)), centre=CENTRE, radius_mm=10, spacing_mm=SPACING)
