"""Noise is measured where there is no anatomy."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from bundle.metrics.regions import homogeneous_regions, noise_magnitude


def volume(sigma: float) -> np.ndarray:
    """A slope with a patch of anatomy in one corner, and white noise."""
    rng = np.random.default_rng(3)
    rows, columns = np.mgrid[:128, :128]
    anatomy = 0.2 * rows + 40
    anatomy[:48, :48] += 40 * np.sin(rows[:48, :48] / 3) * np.sin(columns[:48, :48] / 3)
    return (anatomy[:, :, None] + rng.normal(0, sigma, (128, 128, 3))).astype(np.float32)


@pytest.mark.parametrize("sigma", [2.0, 20.0])
def test_white_noise_is_recovered_and_anatomy_avoided(sigma):
    hu = volume(sigma)
    soft = np.ones(hu.shape, bool)
    centres = homogeneous_regions(hu, soft, per_slice=5)
    assert len(centres) == 15 and {k for _, _, k in centres} == {0, 1, 2}
    if sigma < 10:
        assert not any(row < 56 and column < 56 for row, column, _ in centres)
    assert noise_magnitude(hu, centres) == pytest.approx(sigma, rel=0.03)


def test_noise_is_in_proportion_and_correlation_does_not_matter():
    noise = gaussian_filter(np.random.default_rng(0).normal(0, 50, (96, 96, 2)), (0.8, 0.8, 0))
    centres = homogeneous_regions(noise, np.ones(noise.shape, bool))
    assert noise_magnitude(3 * noise, centres) == pytest.approx(3 * noise_magnitude(noise, centres))
    assert noise_magnitude(noise, centres) == pytest.approx(noise.std(), rel=0.1)


def test_only_soft_tissue_counts():
    hu = volume(5)
    soft = np.zeros(hu.shape, bool)
    assert homogeneous_regions(hu, soft) == []
    soft[64:, 64:, 1] = True
    assert all(row >= 80 and column >= 80 and k == 1 for row, column, k in homogeneous_regions(hu, soft))
    with pytest.raises(ValueError, match="centres is empty"):
        noise_magnitude(hu, [])
