import numpy as np
import pytest
from phantom_series import write_phantom_series

from bundle.degrade.slabs import ThickSlices
from bundle.dicom.index import read_volume
from bundle.dicom.thin_slices import ThinSlices
from bundle.restoration.thick_again import ThickAgain, thick_again


def differences(thin, thickness, exact, before=None):
    again = ThickAgain(exact, thickness=thickness, depth=thin.shape[2])
    inside = np.ones(thin.shape[:2], bool)
    found = [
        again.add(k, (thin if before is None else before)[:, :, k], thin[:, :, k], inside) for k in range(thin.shape[2])
    ]
    return [difference for done in found for difference, _ in done]


@pytest.mark.parametrize(("thickness", "exact"), [(5.0, (2, 7, 12)), (2.5, (1, 6)), (3.7, (2, 8)), (1.0, (0, 5))])
def test_true_thin_slices_give_the_thick_ones_that_were_made_of_them(thickness, exact):
    thin = np.random.default_rng(0).normal(0, 50, (4, 4, 15)).astype(np.float32)
    before = thin.copy()
    for k in exact:  # a thick slice over thin ones of 1 mm, by the model that training uses
        weights = ThickSlices(thickness_mm=thickness, offset_mm=k, increment_mm=100.0).slab_weights(15, 1.0)
        before[:, :, k] = thin @ weights[0]
    found = differences(thin, thickness, exact, before)
    assert len(found) == len(exact)
    np.testing.assert_allclose(found, 0, atol=1e-3)


def test_a_shift_of_the_thin_slices_is_seen_and_what_reaches_beyond_the_series_is_left_out():
    before = np.zeros((4, 4, 12), np.float32)
    assert differences(before, 5.0, (1, 10)) == []
    after = before.copy()
    after[:, :, 5] = 40.0
    (found,) = differences(after, 5.0, (5,), before)
    np.testing.assert_allclose(found, 8.0)  # one of five slices
    after[:, :, 4:7] = [-20.0, 40.0, -20.0]  # what moves between neighbours is no shift
    (found,) = differences(after, 5.0, (5,), before)
    np.testing.assert_allclose(found, 0, atol=1e-5)


def test_what_was_not_brought_onto_thin_slices_is_not_checked(tmp_path):
    write_phantom_series(tmp_path, slices=6, spacing=(0.8, 0.8, 5.0), SliceThickness="5")
    volume = read_volume(str(tmp_path))
    assert thick_again(volume) is None
    thin = ThinSlices(slice_spacing_mm=1.0, nominal=True).volume(volume)
    again = thick_again(thin)
    inside = np.ones(thin.shape[:2], bool)
    done = [again.add(k, thin.slice_hu(k), thin.slice_hu(k), inside) for k in range(thin.shape[2])]
    assert sum(map(len, done)) == 4, "all but the first and the last, which reach beyond the thin slices"
