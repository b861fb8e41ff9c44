import numpy as np

from bundle.restoration.pooling import pooled

GAMMA = 3.0  # HU


def of_eight_draws(true_hu):
    """Deviations (n - 1) of eight normal draws per voxel around a true deviation (H, W)."""
    draws = np.random.default_rng(0).normal(0, 1, (8, *true_hu.shape)) * true_hu
    return draws.std(axis=0, ddof=1).astype(np.float32)


def test_a_constant_stays_up_to_the_very_edge_of_what_was_drawn():
    deviation = np.zeros((40, 50), np.float16)
    deviation[5:30, 7:41] = GAMMA
    result = pooled(deviation)
    np.testing.assert_allclose(result[5:30, 7:41], GAMMA, rtol=1e-4)
    assert result.dtype == np.float32 and not result[deviation == 0].any()


def test_the_deviation_of_eight_draws_is_known_ten_times_better():
    true_hu = np.full((128, 128), GAMMA)
    deviation = of_eight_draws(true_hu)
    error, single = pooled(deviation) - GAMMA, deviation - GAMMA
    assert single.std() > 0.2 * GAMMA  # sqrt(1/14) = 27 %
    assert np.sqrt(np.mean(error**2)) < single.std() / 8
    assert abs(np.mean(pooled(deviation) ** 2) - GAMMA**2) < 0.01 * GAMMA**2  # variances are averaged: no bias


def test_what_differs_from_place_to_place_is_kept():
    rows = np.linspace(0, 2 * np.pi, 128)
    true_hu = np.broadcast_to(10 + 5 * np.sin(rows)[:, None], (128, 128))
    inner = pooled(of_eight_draws(true_hu))[16:-16, 16:-16]
    np.testing.assert_allclose(inner, true_hu[16:-16, 16:-16], rtol=0.12)


def test_nothing_drawn_is_nothing():
    assert not pooled(np.zeros((8, 8), np.float32)).any()
