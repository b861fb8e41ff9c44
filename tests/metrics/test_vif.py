"""VIF against torchmetrics' implementation, which ldct-benchmark calls, and its laws."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from bundle.metrics.vif import vif

RNG = np.random.default_rng(4)
SCENE = gaussian_filter(RNG.normal(0, 2000, (96, 80)), 2) + 1000
NOISY = SCENE + RNG.normal(0, 25, SCENE.shape)


@pytest.mark.parametrize("variance", [2.0, 0.4])
@pytest.mark.parametrize("swapped", [False, True])
def test_equal_to_torchmetrics(variance, swapped):
    functional = pytest.importorskip("torchmetrics.functional.image")
    flat = NOISY.copy()
    flat[:40, :40] = 7  # the cases of a constant region and of inverted contrast
    flat[50:, 50:] = 2000 - SCENE[50:, 50:]
    for image in (NOISY, gaussian_filter(SCENE, 1.2), flat):
        reference, other = (image, SCENE) if swapped else (SCENE, image)
        tensors = (torch.from_numpy(x)[None, None] for x in (other, reference))
        expected = float(functional.visual_information_fidelity(*tensors, sigma_n_sq=variance))
        assert vif(reference, other, noise_variance=variance) == pytest.approx(expected, rel=1e-6)


def test_an_image_keeps_all_information_about_itself():
    assert vif(SCENE, SCENE) == pytest.approx(1, abs=1e-6)
    assert vif(np.zeros((48, 48)), np.zeros((48, 48))) == 1


def test_noise_and_blur_lose_information_and_contrast_gains_it():
    values = [vif(SCENE, SCENE + RNG.normal(0, sigma, SCENE.shape)) for sigma in (1, 10, 100)]
    assert 1 > values[0] > values[1] > values[2] > 0
    assert vif(SCENE, gaussian_filter(SCENE, 1)) < 0.9
    assert vif(SCENE, 1.2 * SCENE) > 1


def test_too_small_images_are_named():
    with pytest.raises(ValueError, match="41 x 41"):
        vif(SCENE[:40], SCENE[:40])
    with pytest.raises(ValueError, match="one shape"):
        vif(SCENE, SCENE[:50])
