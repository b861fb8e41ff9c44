import os
from pathlib import Path

import numpy as np
import pydicom
import pytest
from phantom_series import phantom_hu, write_phantom_series

from bundle.dicom import series as module
from bundle.dicom.index import find_series
from bundle.dicom.series import series_key
from bundle.errors import BundleError


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


def test_an_unchanged_file_is_not_parsed_again_and_a_copied_one_is(tmp_path, monkeypatch):
    hu = write_phantom_series(tmp_path, slices=4)
    series = find_series(tmp_path).series[0]
    parsed = []
    real = module.read_whole
    monkeypatch.setattr(module, "read_whole", lambda stream: parsed.append(1) or real(stream))
    np.testing.assert_array_equal(series.load().array, hu)
    assert parsed == []
    os.utime(series.paths[1], ns=(1, 1))
    np.testing.assert_array_equal(series.load().array, hu)
    assert parsed == [1]


@pytest.mark.parametrize("change", [{"RescaleIntercept": "-1000"}, {"SOPInstanceUID": "1.2.3"}, {"BitsStored": 12}])
def test_a_file_that_changed_behind_the_index_is_refused(tmp_path, change):
    write_phantom_series(tmp_path, slices=3)
    series = find_series(tmp_path).series[0]
    dataset = pydicom.dcmread(series.paths[1])
    for keyword, value in change.items():
        setattr(dataset, keyword, value)
    dataset.HighBit = dataset.BitsStored - 1
    dataset.save_as(series.paths[1])
    with pytest.raises(BundleError, match=r"slice 1 .* changed since"):
        series.load()


def test_what_was_cut_behind_the_index_is_refused(tmp_path):
    write_phantom_series(tmp_path, slices=3)
    series = find_series(tmp_path).series[0]
    path = Path(series.paths[2])
    before = path.stat()
    path.write_bytes(path.read_bytes()[:-2000])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(BundleError, match=r"slice 2 .* truncated"):
        series.load()
