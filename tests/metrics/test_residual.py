"""Noise alone holds no structure; smoothing puts it there."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from bundle.metrics.residual import structure_in_residual


@pytest.fixture(scope="module")
def scene():
    rng = np.random.default_rng(2)
    rows, columns = np.mgrid[:160, :160]
    hu = np.full((160, 160), 40.0)
    for row, column in rng.uniform(10, 150, (40, 2)):
        hu[np.hypot(rows - row, columns - column) < 4] += 150
    clean = np.repeat(gaussian_filter(hu, 0.7)[:, :, None], 3, axis=2)
    return clean + rng.normal(0, 8, clean.shape)


@pytest.mark.parametrize("correlated", [False, True])
def test_noise_of_any_strength_holds_no_structure(scene, correlated):
    noise = np.random.default_rng(5).normal(0, 60, scene.shape)
    noise = gaussian_filter(noise, (1, 1, 0)) if correlated else noise
    inside = np.ones(scene.shape, bool)
    for strength in (0.3, 1):
        assert abs(structure_in_residual(strength * noise, scene, inside)) < 0.03


def test_smoothing_takes_structure_and_the_more_the_more(scene):
    inside = np.ones(scene.shape, bool)
    shares = [structure_in_residual(scene - gaussian_filter(scene, (s, s, 0)), scene, inside) for s in (0.5, 1, 2)]
    assert 0.01 < shares[0] < shares[1] < shares[2] < 1
    noise = np.random.default_rng(6).normal(0, 20, scene.shape)
    removed = scene - gaussian_filter(scene, (1, 1, 0)) + noise
    assert structure_in_residual(removed, scene, inside) == pytest.approx(shares[1], abs=0.02)


def test_sharpening_is_negative_and_half_the_image_is_half_the_share(scene):
    inside = np.ones(scene.shape, bool)
    assert structure_in_residual(-0.1 * scene, scene, inside) == pytest.approx(-0.1, rel=1e-4)
    assert structure_in_residual(0.5 * scene, scene, inside) == pytest.approx(0.5, rel=1e-4)


def test_nothing_to_look_for_is_named(scene):
    with pytest.raises(ValueError, match="no detail"):
        structure_in_residual(scene, np.zeros_like(scene), np.ones(scene.shape, bool))
    with pytest.raises(ValueError, match="no detail"):
        structure_in_residual(scene, scene, np.zeros(scene.shape, bool))
