"""The observer against closed forms."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from bundle.metrics.detectability import channel_matrix, detectability

SIZE = 32
rows, columns = np.mgrid[:SIZE, :SIZE] - SIZE // 2
DISC = gaussian_filter((np.hypot(rows, columns) < 4).astype(float), 0.7)


def regions(contrast: float, *, sigma=20.0, count=400, seed=0, blur=0.0) -> tuple[np.ndarray, np.ndarray]:
    noise = np.random.default_rng(seed).normal(0, sigma, (2, count, SIZE, SIZE))
    if blur:
        noise = gaussian_filter(noise, (0, 0, blur, blur), mode="wrap")
    return noise[0] + contrast * DISC, noise[1]


def test_white_noise_has_the_ideal_observers_index_within_the_channels():
    channels = channel_matrix(SIZE)
    signal = channels @ (10 * DISC).ravel()
    expected = np.sqrt(signal @ np.linalg.pinv(20.0**2 * channels @ channels.T) @ signal)
    assert detectability(*regions(10, count=2000)) == pytest.approx(expected, rel=0.08)


def test_it_grows_with_contrast_and_falls_with_noise():
    contrasts = [detectability(*regions(c)) for c in (3, 6, 12)]
    assert contrasts[0] < contrasts[1] < contrasts[2]
    assert contrasts[2] == pytest.approx(2 * contrasts[1], rel=0.2)
    assert detectability(*regions(10, sigma=40)) < 0.7 * detectability(*regions(10, sigma=20))


def test_what_is_not_there_is_not_seen():
    values = [detectability(*regions(0, seed=seed, blur=blur)) for seed in range(5) for blur in (0, 1)]
    assert abs(np.mean(values)) < 0.1 and np.max(np.abs(values)) < 0.4


def test_scale_and_offset_do_not_matter():
    present, absent = regions(8)
    assert detectability(3 * present + 40, 3 * absent + 40) == pytest.approx(detectability(present, absent), rel=0.05)


def test_too_few_regions_are_named():
    with pytest.raises(ValueError, match="40 regions"):
        detectability(*regions(1, count=39))
