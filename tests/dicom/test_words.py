import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.dicom.layouts import PixelLayout
from bundle.dicom.words import WORDS, common_fits, own_fit
from bundle.errors import BundleError

LAYOUT = PixelLayout(rows=2, columns=2, allocated=16, stored=12, high_bit=11, signed=False)


@pytest.mark.parametrize(
    ("ranges", "stored", "signed", "offset"),
    [
        ([(0, 4095), (5, 6)], 12, False, 0),
        ([(0, 4096), (5, 6)], 16, False, 0),
        ([(-1, 4095), (5, 6)], 16, True, 0),
        ([(-1, 40000), (5, 6)], 16, False, -1),
        ([(100_000, 165_535)], 16, False, 100_000),
    ],
)
def test_the_first_fit_that_holds_all(ranges, stored, signed, offset):
    for fit in common_fits([LAYOUT] * len(ranges), ranges):
        assert (fit.layout.stored, fit.layout.signed, fit.offset, fit.factor) == (stored, signed, offset, 1)


def test_more_than_a_word_fits_no_common_intercept():
    assert common_fits([LAYOUT] * 2, [(0, 65535), (-1, 5)]) is None


@given(st.integers(2, 9), st.integers(-40, 40), st.lists(st.integers(0, 20_000), min_size=2, max_size=9))
@settings(deadline=None)
def test_a_coarser_slope_holds_every_untouched_value(step, base, multiples):
    fixed = np.array(multiples) * step + base
    touched = np.array([-70_000, fixed.max() + 5])
    values = np.concatenate([fixed, touched])
    flags = np.array([False] * len(fixed) + [True] * 2)
    try:
        fit = own_fit(LAYOUT, values, touched=flags, k=0)
    except BundleError:
        assert np.ptp(values) / np.gcd.reduce(np.abs(fixed - fixed[0])) > WORDS - 3
        return
    words = (values - fit.offset) / fit.factor
    assert words.min() >= 0 and np.rint(words).max() < WORDS
    np.testing.assert_array_equal(words[~flags], np.rint(words[~flags]))


def test_what_no_slope_holds_is_refused_by_name():
    values = np.array([0, 1, 70_000])
    with pytest.raises(BundleError, match="slice 3 span 70001 stored values") as caught:
        own_fit(LAYOUT, values, touched=np.array([False, False, True]), k=3)
    assert "untouched" in str(caught.value)
    assert own_fit(LAYOUT, values, touched=np.ones(3, bool), k=3).factor == 2
