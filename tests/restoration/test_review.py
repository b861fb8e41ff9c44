"""What a restoration did, in numbers: known changes give known numbers."""

import numpy as np
import pytest
from phantom_series import phantom_hu
from scipy import ndimage

from bundle.restoration.review import LOW_FREQUENCY_BOUND_HU, Review, low_frequency_shift

SHAPE = (128, 128, 6)


def reviewed(before, after, region=None):
    review = Review(before.shape[2])
    region = np.ones(before.shape, bool) if region is None else region
    for k in range(before.shape[2]):
        review.add(k, before[:, :, k], after[:, :, k], region[:, :, k])
    return review.summary()


def noisy(seed=0, size=128):
    """A body with edges, noise-free, and noise of 15 HU."""
    clean = np.where(phantom_hu(slices=6, size=size) > -500, 50.0, -1000.0).astype(np.float32)
    clean[40:80:8, 50:70] += 120
    return clean, np.random.default_rng(seed).normal(0, 15, clean.shape).astype(np.float32)


def test_noise_alone_taken_away_raises_no_warning():
    clean, noise = noisy()
    found = reviewed(clean + noise, clean + 0.3 * noise)
    assert found["warnings"] == []
    assert found["noise_hu_after"] == pytest.approx(0.3 * found["noise_hu_before"], rel=0.1)
    assert abs(found["structure_in_residual"]) < 0.02
    assert found["low_frequency_shift_hu"] < 3


def test_smoothed_anatomy_is_warned_of():
    clean, noise = noisy()
    smooth = ndimage.gaussian_filter(clean + noise, (1.5, 1.5, 0))
    found = reviewed(clean + noise, smooth)
    assert found["structure_in_residual"] > 0.1
    assert any("detail" in warning for warning in found["warnings"])


def test_a_shift_of_tissue_is_warned_of_and_noise_is_not():
    clean, noise = noisy()
    moved = clean.copy()
    moved[30:70, 30:70] += 20
    found = reviewed(clean + noise, moved + 0.5 * noise)
    assert found["low_frequency_shift_hu"] > LOW_FREQUENCY_BOUND_HU
    assert any("local mean" in warning for warning in found["warnings"])


def test_the_shift_is_the_local_mean_also_at_the_regions_border():
    region = np.zeros((64, 64), bool)
    region[:20, :30] = True
    assert low_frequency_shift(np.full((64, 64), -3.0, np.float32), region) == pytest.approx(3, rel=1e-3)
    assert low_frequency_shift(np.ones((64, 64), np.float32), np.zeros((64, 64), bool)) == 0


def test_voxels_beyond_the_bound_are_counted_with_their_slices():
    clean, noise = noisy()
    after = clean + noise
    after[10:13, 10, 4] += 500
    after[20, 20, 1] -= 500
    found = reviewed(clean + noise, after)
    assert found["voxels_beyond_bound"] == 4
    assert found["slices_most_beyond_bound"] == [4, 1]
    assert found["largest_change_hu"] == pytest.approx(500, abs=0.1)
    assert found["changed_fraction"] == round(4 / clean.size, 4)


def test_one_slice_and_no_region_have_a_summary():
    flat = np.full((64, 64, 1), -1000.0, np.float32)
    found = reviewed(flat, flat, np.zeros(flat.shape, bool))
    assert found["structure_in_residual"] is None and found["warnings"] == []
    assert "noise_inconsistency_before" not in found
