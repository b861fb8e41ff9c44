import numpy as np
import pytest
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity

from bundle.metrics.image import bias_hu, clip, psnr, rmse_hu, ssim

RNG = np.random.default_rng(0)
A = RNG.normal(0, 100, (32, 24, 3)).astype(np.float32)
B = A + RNG.normal(0, 20, A.shape).astype(np.float32)


def test_equal_to_skimage():
    assert rmse_hu(A, B) == pytest.approx(np.sqrt(mean_squared_error(A, B)), rel=1e-6)
    assert psnr(A, B, data_range=2000) == pytest.approx(peak_signal_noise_ratio(A, B, data_range=2000), rel=1e-6)
    options = {"data_range": 400.0, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    expected = [
        structural_similarity(A[..., k].astype(np.float64), B[..., k].astype(np.float64), **options) for k in range(3)
    ]
    assert ssim(A, B, data_range=400) == pytest.approx(np.mean(expected), abs=1e-6)
    assert ssim(A[..., 0], B[..., 0], data_range=400) == pytest.approx(expected[0], abs=1e-6)


def test_psnr_has_its_closed_form():
    assert psnr(A, A + 20, data_range=2000) == pytest.approx(40.0, abs=1e-4)
    assert psnr(A, A, data_range=2000) == float("inf")


def test_ssim_of_identical_images_is_one_and_symmetric():
    assert ssim(A, A, data_range=400) == pytest.approx(1)
    assert ssim(A, B, data_range=400) == pytest.approx(ssim(B, A, data_range=400))


def test_masks_restrict():
    mask = np.zeros(A.shape, bool)
    mask[3:6] = True
    changed = A + 7.0 * mask
    assert bias_hu(changed, A, mask) == pytest.approx(7, abs=1e-4)
    assert bias_hu(changed, A, ~mask) == 0
    assert rmse_hu(changed, A, mask) == pytest.approx(7, abs=1e-4)
    assert psnr(changed, A, data_range=7, mask=mask) == pytest.approx(0, abs=1e-4)


def test_clip_is_what_a_window_shows():
    np.testing.assert_array_equal(clip(np.array([-1000.0, 0, 1000]), (50, 400)), [-150, 0, 250])


def test_misuse_is_named():
    empty = np.zeros(A.shape, bool)
    for call in (
        lambda: rmse_hu(A, B, empty),
        lambda: bias_hu(A, B, empty),
        lambda: psnr(A, B, data_range=1, mask=empty),
    ):
        with pytest.raises(ValueError, match="mask is empty"):
            call()
    with pytest.raises(ValueError, match="one shape"):
        rmse_hu(A, B[:5])
    with pytest.raises(ValueError, match="mask has shape"):
        rmse_hu(A, B, empty[:5])
    with pytest.raises(ValueError, match="data_range"):
        psnr(A, B, data_range=0)
    with pytest.raises(ValueError, match="10 x 24 is smaller than the window of 11 x 11"):
        ssim(A[:10], B[:10], data_range=400)
    with pytest.raises(ValueError, match="data_range"):
        ssim(A, B, data_range=-1)
