import numpy as np
import pytest

from bundle.metrics.consistency import slice_noise_inconsistency


def test_even_noise_has_none_and_scale_does_not_matter():
    assert slice_noise_inconsistency(np.full(8, 12.0)) == 0
    levels = np.array([10.0, 12, 9, 11])
    assert slice_noise_inconsistency(levels) == pytest.approx(slice_noise_inconsistency(5 * levels))


def test_every_second_slice_smoothed_is_flicker():
    drift = np.linspace(10, 20, 9)  # the patient gets thicker: no flicker
    flicker = np.where(np.arange(9) % 2, 10.0, 20.0)
    assert slice_noise_inconsistency(flicker) > 5 * slice_noise_inconsistency(drift)
    assert slice_noise_inconsistency(np.array([10.0, 20.0])) == pytest.approx(10 / 15)


def test_one_slice_has_no_neighbour():
    with pytest.raises(ValueError, match="neighbour"):
        slice_noise_inconsistency(np.array([3.0]))
