import math

import numpy as np
import pytest

from bundle.degrade.blur import InPlaneBlur

SPACING = (0.8, 0.8, 2.0)


def noise(seed=0, size=48):
    return np.random.default_rng(seed).normal(0, 100, (size, size, 3)).astype(np.float32)


def test_an_infinite_mtf_is_the_identity():
    volume = noise()
    assert np.array_equal(InPlaneBlur(mtf50_per_mm=math.inf).apply(volume, spacing_mm=SPACING), volume)
    assert InPlaneBlur(mtf50_per_mm=math.inf).margin(SPACING) == 0


@pytest.mark.parametrize("mtf50", [0.2, 0.3])
@pytest.mark.parametrize("spacing", [(0.8, 0.8), (0.5, 0.8)])
def test_half_of_the_contrast_is_left_at_mtf50(mtf50, spacing):
    size = 400
    for axis in (0, 1):
        wave = np.cos(2 * np.pi * mtf50 * np.arange(size) * spacing[axis]).astype(np.float32)
        volume = np.broadcast_to(wave[:, None] if axis == 0 else wave, (size, size))[:, :, None]
        result = InPlaneBlur(mtf50_per_mm=mtf50).apply(volume, spacing_mm=(*spacing, 1.0))
        middle = np.s_[100:300, 100:300]
        assert np.std(result[middle]) / np.std(volume[middle]) == pytest.approx(0.5, rel=0.02)


def test_the_mean_stays_and_slices_are_apart():
    volume = noise()
    blur = InPlaneBlur(mtf50_per_mm=0.25)
    result = blur.apply(volume, spacing_mm=SPACING)
    np.testing.assert_allclose(result.mean(axis=(0, 1)), volume.mean(axis=(0, 1)), atol=1e-3)
    assert np.array_equal(result[:, :, 1:2], blur.apply(volume[:, :, 1:2], spacing_mm=SPACING))


def test_the_blur_is_its_own_adjoint():
    blur, x, y = InPlaneBlur(mtf50_per_mm=0.2), noise(1), noise(2)
    there = np.vdot(blur.apply(x, spacing_mm=SPACING).astype(np.float64), y)
    assert there == pytest.approx(np.vdot(x.astype(np.float64), blur.apply(y, spacing_mm=SPACING)), rel=1e-4)


def test_a_region_with_its_margin_is_a_part_of_the_whole():
    blur, volume = InPlaneBlur(mtf50_per_mm=0.3), noise(size=80)
    margin = blur.margin(SPACING)
    whole = blur.apply(volume, spacing_mm=SPACING)
    part = blur.apply(volume[30 - margin : 40 + margin, 30 - margin : 40 + margin], spacing_mm=SPACING)
    np.testing.assert_allclose(part[margin:-margin, margin:-margin], whole[30:40, 30:40], atol=1e-3)


def test_an_impossible_blur_is_refused():
    with pytest.raises(ValueError, match="mtf50_per_mm"):
        InPlaneBlur(mtf50_per_mm=0)
