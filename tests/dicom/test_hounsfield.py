import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from bundle.dicom.elements import Unusable
from bundle.dicom.hounsfield import fill_hu, hu_range, rescale


def header(**values):
    made = Dataset()
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made


def test_rescale():
    assert rescale(header(RescaleSlope="2", RescaleIntercept="-1024")) == (2, -1024)
    assert rescale(header(RescaleSlope="1", RescaleIntercept="0", RescaleType="Houndsfield Unit")) == (1, 0)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "RescaleSlope"),
        ({"RescaleSlope": "0", "RescaleIntercept": "0"}, "is 0"),
        ({"RescaleSlope": "1"}, "RescaleIntercept"),
        ({"RescaleSlope": "1", "RescaleIntercept": "0", "RescaleType": "US"}, "RescaleType"),
        ({"RescaleSlope": "1", "RescaleIntercept": "0", "ModalityLUTSequence": [Dataset()]}, "Modality LUT"),
    ],
)
def test_rescale_refuses_what_is_not_hu(values, words):
    with pytest.raises(Unusable, match=words):
        rescale(header(**values))


@given(
    stored=st.lists(st.integers(-32768, 32767), min_size=1, max_size=8),
    kind=st.sampled_from(["i2", "u2", "i4"]),
    out=st.sampled_from(["i2", "u2", "i4", "i8", "f4", "f8"]),
    slope=st.sampled_from([1.0, -1.0, 2.0, 37.0, 70000.0, 0.5, 1.00021]),
    intercept=st.sampled_from([0.0, -1024.0, -8192.0, 40000.0, -0.25]),
)
@settings(max_examples=400, deadline=None)
def test_hu_are_those_of_float64_or_refused(stored, kind, out, slope, intercept):
    values = np.array(stored, "i4").astype(kind)
    exact = values.astype(np.float64) * slope + intercept
    filled = np.zeros(len(values), out)
    if filled.dtype.kind == "f":
        fill_hu(filled, values, slope=slope, intercept=intercept)
        np.testing.assert_array_equal(filled, exact.astype(out))
        return
    limits = np.iinfo(out)
    lawful = slope.is_integer() and intercept.is_integer() and limits.min <= exact.min() <= exact.max() <= limits.max
    if lawful:
        fill_hu(filled, values, slope=slope, intercept=intercept)
        np.testing.assert_array_equal(filled, exact)
    else:
        with pytest.raises(ValueError, match="does not hold"):
            fill_hu(filled, values, slope=slope, intercept=intercept)


def test_range_of_a_falling_rescale():
    assert hu_range(np.array([3, 7, 5], np.int16), slope=-2, intercept=1) == (-13, -5)
