import copy
import pickle

import numpy as np
import pytest
from phantom_series import write_phantom_series

from bundle.dicom.index import read_volume


@pytest.fixture
def volume(tmp_path):
    write_phantom_series(tmp_path / "in", spacing=(0.7, 0.9, 2.5))
    return read_volume(str(tmp_path / "in"))


def test_copies_are_the_volume_itself(volume):
    assert copy.copy(volume) is volume
    assert copy.deepcopy({"volume": volume})["volume"] is volume


def test_arrays_cannot_be_written_to(volume):
    assert volume.padding_mask is None and not volume.is_padded
    for array in (volume.array, volume.stored, volume.affine, volume.slope, volume.intercept):
        with pytest.raises(ValueError):
            array[...] = 0


def test_survives_pickling_to_a_worker(volume):
    other = pickle.loads(pickle.dumps(volume))
    np.testing.assert_array_equal(other.array, volume.array)
    assert other.key == volume.key and len(other.headers) == len(volume.headers)


def test_geometry(volume):
    assert volume.spacing_mm == pytest.approx((0.7, 0.9, 2.5))
    assert volume.is_axis_aligned and not volume.is_sheared
    place = np.array([5, 7, 3, 1])
    lps, ras = volume.affine @ place, volume.affine_ras @ place
    np.testing.assert_allclose(ras, lps * [-1, -1, 1, 1])


def test_stored_values_and_rescale_give_the_hu(volume):
    np.testing.assert_array_equal(volume.stored * volume.slope + volume.intercept, volume.array)


@pytest.mark.parametrize("kind", ["i2", "i4", "f4", "f8"])
def test_hu_come_in_the_type_that_is_asked_for_and_are_new_each_time(volume, kind):
    hu = volume.hu(kind)
    assert hu.dtype == kind and hu.shape == volume.shape
    np.testing.assert_array_equal(hu, volume.stored * volume.slope + volume.intercept)
    hu[...] = 0
    assert volume.hu(kind).any()
    rows_last = np.empty(volume.shape, kind)
    assert volume.hu(out=rows_last) is rows_last
    np.testing.assert_array_equal(rows_last, volume.array)
    for k in range(volume.shape[2]):
        np.testing.assert_array_equal(volume.slice_hu(k), volume.array[:, :, k])


def test_a_type_that_would_change_hu_is_refused(volume):
    with pytest.raises(ValueError, match="uint16 does not hold"):
        volume.hu(np.uint16)


def test_a_volume_holds_no_more_than_its_stored_values(tmp_path):
    write_phantom_series(tmp_path, PixelPaddingValue=24)
    volume = read_volume(str(tmp_path))
    held = [value for value in vars(volume).values() if isinstance(value, np.ndarray) and value.size > 1000]
    assert [array.dtype for array in held] == [np.int16] and volume.is_padded
    mask = np.stack([volume.slice_padding(k) for k in range(volume.shape[2])], axis=2)
    np.testing.assert_array_equal(mask, volume.padding_mask)
    np.testing.assert_array_equal(mask, volume.stored == 24)


def test_its_text_names_no_one(volume):
    assert "phantom" not in repr(volume).lower()


def test_a_volume_of_true_slices_is_its_own_source(volume):
    assert not volume.resampled and volume.source_headers is volume.headers
    assert volume.sources(3) == (3,) and volume.is_true_slice(3)


def test_origins_of_a_resampled_volume(tmp_path):
    write_phantom_series(tmp_path / "in", drop=(4, 5, 6))
    volume = pickle.loads(pickle.dumps(read_volume(str(tmp_path / "in"), gaps="resample")))
    assert volume.resampled and len(volume.source_headers) == 9 and len(volume.headers) == len(volume.origins) == 12
    assert [volume.origins.of(k) for k in (3, 4, 6, 7)] == [(3,), (3, 4), (3, 4), (4,)]
    assert [volume.origins.nearest(k) for k in (3, 4, 6, 7)] == [3, 3, 4, 4]
    assert [volume.is_true_slice(k) for k in (3, 4, 6, 7)] == [True, False, False, True]
