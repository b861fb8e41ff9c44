"""One bad series does not stop the rest."""

import pytest

from bundle.data.sources import Case
from bundle.errors import BundleError, ExitCode
from bundle.restoration.worklist import SeriesDataset, failure_of, single


def case(key):
    return Case(key=key, patient_key="p", files=(key,), label="")


def load(data):
    if data["image"] == ["bad"]:
        try:
            raise BundleError("slices missing")
        except BundleError as error:
            raise RuntimeError("applying transform") from error  # as MONAI wraps it
    return {"image": data["image"]}


def test_items_are_data_failures_or_finished():
    dataset = SeriesDataset([case("good"), case("bad"), case("old")], load, finished=lambda c: c.key == "old")
    assert dataset[0]["data"] == {"image": ["good"]}
    assert dataset[1]["failure"].message == "slices missing"
    assert dataset[2]["finished"] and "data" not in dataset[2]


def test_a_defect_or_a_full_disk_is_not_a_bad_series():
    with pytest.raises(ZeroDivisionError):
        failure_of(ZeroDivisionError())
    full = OSError(28, "No space left on device", "x")
    with pytest.raises(OSError):
        failure_of(full)
    with pytest.raises(BundleError):
        failure_of(BundleError("disk", exit_code=ExitCode.IO))


def test_a_batch_is_one_series():
    item = {"case": case("a")}
    assert single([item]) is item
