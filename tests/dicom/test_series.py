import numpy as np
import pytest
from phantom_series import phantom_hu, write_phantom_series
from pydicom.dataset import Dataset

from bundle.dicom.elements import Unusable
from bundle.dicom.hounsfield import rescale
from bundle.dicom.index import find_series
from bundle.dicom.series import series_key
from bundle.errors import BundleError


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


def test_keys():
    assert len(series_key("1.2", ())) == 16
    assert series_key("", ["b", "a", "a"]) == series_key("", ["a", "b"]) != series_key("", ["a"])
    assert series_key("1.2", (), label="x") != series_key("1.2", ()) != series_key("1.3", ())


def test_per_slice_rescale_and_sign(tmp_path):
    hu = phantom_hu(slices=4)
    write_phantom_series(tmp_path, hu=hu, RescaleIntercept=lambda k: str(-1024 - k))
    volume = find_series(tmp_path).series[0].load()
    np.testing.assert_array_equal(volume.array, hu - np.arange(4))
    np.testing.assert_array_equal(volume.intercept, -1024.0 - np.arange(4))


def test_patient_key_falls_back_to_name_and_study(tmp_path):
    write_phantom_series(tmp_path / "a", patient="")
    write_phantom_series(tmp_path / "b", patient="", PatientName="")
    keys = {find_series(tmp_path / name).series[0].patient_key for name in "ab"}
    assert len(keys) == 2


def test_errors_name_the_slice_but_not_the_folder(tmp_path):
    write_phantom_series(tmp_path / "Secret^Name", slices=3)
    series = find_series(tmp_path / "Secret^Name").series[0]
    for path in (tmp_path / "Secret^Name").iterdir():
        path.write_bytes(b"")
    with pytest.raises(BundleError, match="slice 0") as caught:
        series.load()
    assert "Secret" not in str(caught.value)


def test_a_series_shows_no_identifier(tmp_path):
    write_phantom_series(tmp_path / "DOE", slices=3, patient="SECRET-7")
    series = find_series(tmp_path / "DOE").series[0]
    assert series.key in repr(series)
    assert "SECRET" not in repr(series) and "DOE" not in repr(series) and "2.25." not in repr(series)
