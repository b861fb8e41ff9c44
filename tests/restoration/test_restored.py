"""Slices made on demand are exactly input plus strength times difference where that is allowed."""

import numpy as np
import pytest
from phantom_series import phantom_hu

from bundle.restoration.nifti import NiftiSource
from bundle.restoration.region import apply_difference
from bundle.restoration.restored import RestoredSlices, left_out_hu


@pytest.fixture
def source():
    return NiftiSource(phantom_hu(slices=4), np.diag([0.8, 0.8, 2.5, 1.0]))


def difference(kind=np.float32):
    return np.random.default_rng(0).normal(0, 10, (64, 64, 4)).astype(kind)


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_it_is_what_the_whole_array_would_be(source, strength):
    whole = np.stack([source.slice_hu(k) for k in range(4)], axis=2)
    expected = apply_difference(whole, difference(), strength=strength)
    np.testing.assert_array_equal(RestoredSlices(source, difference(), strength=strength).array(), expected)


def test_half_precision_is_exact_to_a_fiftieth_of_a_hu(source):
    exact = RestoredSlices(source, difference()).array()
    half = RestoredSlices(source, difference(np.float16)).array()
    assert np.abs(half - exact)[np.abs(exact - np.stack([source.slice_hu(k) for k in range(4)], 2)) < 32].max() < 0.02


def test_strength_zero_is_the_input_bit_for_bit(source):
    restored = RestoredSlices(source, difference(), strength=0.0)
    for k in range(4):
        assert restored[:, :, k].tobytes() == source.slice_hu(k).tobytes()


def test_the_change_is_in_proportion_to_the_strength(source):
    whole = RestoredSlices(source, difference(), strength=1.0).array()
    half = RestoredSlices(source, difference(), strength=0.5).array()
    hu = np.stack([source.slice_hu(k) for k in range(4)], axis=2)
    np.testing.assert_allclose(half - hu, 0.5 * (whole - hu), atol=1e-3)


def test_what_a_strength_leaves_out_is_counted_per_slice_where_something_changed():
    change = np.zeros((8, 8, 3), np.float16)
    change[:2, :, 0], change[:, :, 1] = 300.0, -4.0  # the square of 300 is beyond half precision
    np.testing.assert_allclose(left_out_hu(change, strength=0.75), [75.0, 1.0, 0.0])
    assert not left_out_hu(change, strength=1.0).any()


def test_every_slice_is_told_of_once_and_untouched_voxels_are_cleared(source):
    seen, change = [], difference()
    RestoredSlices(source, change, on_slice=lambda k, before, after, region: seen.append((k, before, after, region)))
    assert [k for k, *_ in seen] == [0, 1, 2, 3]
    for k, before, after, region in seen:
        np.testing.assert_array_equal(before, source.slice_hu(k))
        np.testing.assert_array_equal(after[~region], before[~region])
        assert not change[:, :, k][~region].any() and (after != before)[region].mean() > 0.9


def test_another_shape_is_refused(source):
    with pytest.raises(ValueError, match="shape"):
        RestoredSlices(source, np.zeros((64, 64, 5), np.float32))
