"""Where a restoration may touch an image."""

import numpy as np
import pytest
from phantom_series import phantom_hu

from bundle.restoration.region import HARD_LIMITS_HU, apply_difference, touchable


def test_body_and_lungs_are_touched_and_far_air_is_not():
    volume_hu = phantom_hu(size=128)
    region = touchable(volume_hu)
    assert region[volume_hu > -500].mean() > 0.95
    assert region[40, 64, 6], "inside a lung"
    assert not region[2, 120].any(), "a corner of air"


def test_padding_and_values_no_tissue_has_are_never_touched():
    volume_hu = phantom_hu()
    volume_hu[32, 32, 3] = 20000.0
    volume_hu[30, 32, 3] = HARD_LIMITS_HU[0] - 1
    padding = np.zeros(volume_hu.shape, bool)
    padding[34, 32, 3] = True
    region = touchable(volume_hu, padding)
    assert not region[32, 32, 3] and not region[30, 32, 3] and not region[34, 32, 3]
    assert region[33, 32, 3]


def test_two_separate_bodies_are_both_touched():
    volume_hu = np.full((64, 64, 1), -1000.0, np.float32)
    volume_hu[4:28, 4:28] = 40.0  # an arm beside
    volume_hu[36:60, 36:60] = 40.0  # the trunk
    region = touchable(volume_hu)
    assert region[16, 16, 0] and region[48, 48, 0] and not region[10, 54, 0]


def test_air_alone_is_not_touched():
    assert not touchable(np.full((16, 16, 2), -1000.0, np.float32)).any()


def test_strength_zero_gives_the_input_back():
    volume_hu = phantom_hu()
    assert np.array_equal(apply_difference(volume_hu, np.full(volume_hu.shape, 12.5), strength=0.0), volume_hu)


def test_strength_is_linear_inside_and_nothing_outside():
    volume_hu = phantom_hu()
    difference = np.full(volume_hu.shape, 10.0, np.float32)
    half, whole = (apply_difference(volume_hu, difference, strength=s) - volume_hu for s in (0.5, 1.0))
    assert np.allclose(2 * half, whole, atol=1e-3)
    assert whole.max() == pytest.approx(10.0, abs=1e-3)
    assert (whole == 0).any() and not whole[0, -1].any()
