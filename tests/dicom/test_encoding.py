import datetime

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from phantom_series import phantom_hu, write_phantom_series

from bundle.dicom.encoding import encode, step_out_of_padding
from bundle.dicom.index import read_volume
from bundle.dicom.writer import Derivation, write_derived_series
from bundle.errors import BundleError

DERIVATION = Derivation(
    description="test", series_suffix="test", settings_digest="ab", weights_digest="cd", software_version="0"
)


def write(volume, hu, folder):
    return write_derived_series(volume, hu, folder, derivation=DERIVATION, now=datetime.datetime(2025, 1, 2))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """12 bits stored, unsigned."""
    folder = tmp_path_factory.mktemp("small")
    tags = {"BitsStored": 12, "HighBit": 11, "PixelRepresentation": 0, "PixelPaddingValue": 24}
    write_phantom_series(folder, slices=2, size=32, **tags)
    return read_volume(str(folder))


@given(st.lists(st.floats(-30000, 30000, width=32), min_size=8, max_size=8), st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nothing_is_clipped_and_nothing_else_is_touched(small, tmp_path, values, seed):
    rng = np.random.default_rng(seed)
    hu = small.array.copy()
    places = tuple(rng.integers(0, n, 8) for n in hu.shape)
    hu[places] = values
    write(small, hu, tmp_path / f"{seed}")
    back = read_volume(str(tmp_path / f"{seed}"))
    assert np.abs(back.array - hu).max() <= 0.5 + 1  # half a stored unit; one more where it would become padding
    same = hu == small.array
    np.testing.assert_array_equal(back.array[same], small.array[same])
    if back.padding_mask is not None:
        np.testing.assert_array_equal(back.padding_mask & ~small.padding_mask, False)


@pytest.mark.parametrize(
    ("low", "high", "intercept"), [(-900, 2000, -1024), (-4000, 2000, -1024), (-2000, 60000, None)]
)
def test_bits_widen_only_as_needed(small, tmp_path, low, high, intercept):
    hu = small.array.copy()
    hu[0, 0, 0], hu[1, 0, 0] = low, high
    ds = pydicom.dcmread(write(small, hu, tmp_path / "out").paths[0])
    assert ds.BitsStored == (12 if low == -900 else 16) and (intercept is None or ds.RescaleIntercept == intercept)
    back = read_volume(str(tmp_path / "out"))
    np.testing.assert_array_equal(back.array, hu)
    assert ds["PixelPaddingValue"].VR == ("SS" if ds.PixelRepresentation else "US")


def test_halves_round_to_even(small, tmp_path):
    hu = small.array.copy()
    hu[:4, 0, 0] = [10.5, 11.5, -10.5, 12.25]
    write(small, hu, tmp_path / "out")
    np.testing.assert_array_equal(read_volume(str(tmp_path / "out")).array[:4, 0, 0], [10, 12, -10, 12])


def test_values_that_cannot_be_stored_are_refused(small, tmp_path):
    for value in (np.nan, np.inf, 1e9):
        hu = small.array.copy()
        hu[3, 3, 1] = value
        with pytest.raises(BundleError, match="restored values"):
            write(small, hu, tmp_path / "out")


def test_untouched_values_are_the_source_s(small):
    for k, image in enumerate(encode(small, small.array)):
        np.testing.assert_array_equal(image.stored.T, small.stored[:, :, k])
        assert image.layout.stored == 12 and image.padding == (24, None)


def test_shapes_must_agree(small):
    with pytest.raises(ValueError, match="shape"):
        encode(small, small.array[:, :, :1])


def test_padding_gives_way_where_a_word_cannot_reach_it(tmp_path):
    hu = phantom_hu(slices=2, size=32)
    hu[:3] = 63536 - 1024  # -2000 in unsigned words
    tags = {"PixelRepresentation": 0, "PixelPaddingValue": 63536}
    write_phantom_series(tmp_path / "in", hu=hu, **tags)
    volume = read_volume(str(tmp_path / "in"))
    restored = volume.array.copy()
    restored[20, 20, 1] = -3000
    write(volume, restored, tmp_path / "out")
    back = read_volume(str(tmp_path / "out"))
    np.testing.assert_array_equal(back.padding_mask, volume.padding_mask)
    np.testing.assert_array_equal(back.array[3:], restored[3:])


def wide(folder, hu, **tags):
    """A volume of two slices with `hu` (H, W, D), whole numbers, unsigned."""
    write_phantom_series(folder, hu=hu, PixelRepresentation=0, **tags)
    return read_volume(str(folder))


def test_a_slice_beyond_the_others_gets_an_intercept_of_its_own(tmp_path):
    hu = phantom_hu(slices=2, size=32)
    hu[0, 0, 0] = 64511  # all of a word with the intercept of -1024
    volume = wide(tmp_path / "in", hu)
    restored = volume.array.copy()
    restored[5, 5, 1] = -1500
    write(volume, restored, tmp_path / "out")
    back = read_volume(str(tmp_path / "out"))
    np.testing.assert_array_equal(back.array, restored)
    assert list(back.intercept) == [-1024, -1500] and list(back.slope) == [1, 1]


def test_a_slice_wider_than_a_word_gets_a_coarser_slope_if_nothing_untouched_changes(tmp_path):
    hu = 2 * np.floor(phantom_hu(slices=2, size=32) / 2)
    hu[0, 0, 0] = 64510
    volume = wide(tmp_path / "in", hu)
    restored = volume.array.copy()
    restored[5, 5, 0], restored[6, 6, 0] = -1501, -1499.5
    write(volume, restored, tmp_path / "out")
    back = read_volume(str(tmp_path / "out"))
    same = restored == volume.array
    np.testing.assert_array_equal(back.array[same], volume.array[same])
    assert np.abs(back.array - restored).max() <= 1 and list(back.slope) == [2, 1]


def test_a_slice_wider_than_a_word_is_else_refused_by_name(tmp_path):
    hu = phantom_hu(slices=2, size=32)
    hu[0, 0, 0] = 64511
    volume = wide(tmp_path / "in", hu)
    restored = volume.array.copy()
    restored[5, 5, 0] = -1500
    with pytest.raises(BundleError, match="slice 0 span 66012 stored values, more than 16 bits hold"):
        write(volume, restored, tmp_path / "out")


def test_tissue_never_becomes_padding_by_chance():
    values = np.array([10, 20, 22, 24, 30])
    moved = step_out_of_padding(values, (24, 20), where=np.array([True, True, True, False, True]))
    np.testing.assert_array_equal(moved, [10, 19, 25, 24, 30])
    assert step_out_of_padding(values, None, where=values > 0) is values
