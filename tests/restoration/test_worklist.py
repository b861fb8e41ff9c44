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


def test_every_error_is_an_item_because_a_reading_thread_would_lose_it():
    def broken(_):
        raise full

    full = OSError(28, "No space left on device", "x")
    assert SeriesDataset([case("a")], broken)[0]["failure"] is full
    assert SeriesDataset([case("a")], load, finished=broken)[0]["failure"] is full


def test_a_full_disk_and_an_interruption_are_no_bad_series():
    full = OSError(28, "No space left on device", "x")
    with pytest.raises(OSError):
        failure_of(full)
    for code in (ExitCode.IO, ExitCode.INTERRUPTED):
        with pytest.raises(BundleError):
            failure_of(BundleError("all of them", exit_code=code))


def test_a_defect_is_told_with_its_traceback(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    failure = failure_of(ZeroDivisionError("by zero"))
    (log,) = tmp_path.iterdir()
    assert failure.exit_code == ExitCode.DEFECT
    assert str(failure) == f"ZeroDivisionError: by zero (a defect of ours; traceback in {log})"
    assert "ZeroDivisionError: by zero" in log.read_text()


def test_a_batch_is_one_series():
    item = {"case": case("a")}
    assert single([item]) is item
