"""A series is written while the next is restored: the same files, the same errors, and a stop that loses nothing."""

import errno
import json
import os
import signal
import threading

import pytest
from phantom_series import write_phantom_series

from bundle.configuration import exit_code
from bundle.dicom.index import find_series
from bundle.errors import BundleError, ExitCode, InterruptedRun, find_bundle_error
from bundle.restoration.evaluator import RestorationEvaluator
from bundle.restoration.saving import SaveRestored


def before_writing(monkeypatch, key, action):
    """Have `action` called before the series with that key is written."""
    write = SaveRestored.__call__

    def acted(self, data):
        if data["case"].key == key:
            action()
        return write(self, data)

    monkeypatch.setattr(SaveRestored, "__call__", acted)


def test_pipelined_a_series_is_written_while_the_next_is_restored_to_the_same_files(
    tmp_path, run, two_series, monkeypatch
):
    first, second = sorted(series.key for series in find_series(two_series).series)
    run(two_series, output_dir=tmp_path / "plain")
    begun, waited = threading.Event(), []
    restore = RestorationEvaluator._restored

    def seen(self, image, key):
        if key == second:
            begun.set()
        return restore(self, image, key)

    monkeypatch.setattr(RestorationEvaluator, "_restored", seen)
    before_writing(monkeypatch, first, lambda: waited.append(begun.wait(60)))
    run(two_series, pipelined=True)
    assert waited == [True], "the first was not written before the network was at work on the second"
    plain, piped = (
        {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*/dicom/*.dcm")}
        for out in (tmp_path / "plain", tmp_path / "out")
    )
    assert plain.keys() == piped.keys() and len(plain) == 6
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["complete"]


def fails_with(error):
    def fail():
        raise error

    return fail


@pytest.mark.parametrize("pipelined", [False, True])
def test_an_error_in_writing_is_that_series(tmp_path, run, two_series, pipelined, monkeypatch):
    first, second = sorted(series.key for series in find_series(two_series).series)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before_writing(monkeypatch, first, fails_with(BundleError("cannot be written so")))
    run(two_series, pipelined=pipelined)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert exit_code() == ExitCode.PARTIAL
    assert summary["failed"] == {first: "cannot be written so"} and list(summary["series"]) == [second]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES], ids=errno.errorcode.get)
@pytest.mark.parametrize("pipelined", [False, True])
def test_a_disk_that_takes_no_more_ends_the_run(tmp_path, run, two_series, pipelined, number, monkeypatch):
    first, second = sorted(series.key for series in find_series(two_series).series)
    for key in (first, second):
        out = tmp_path / key
        with monkeypatch.context() as changed:
            before_writing(changed, key, fails_with(OSError(number, os.strerror(number))))
            with pytest.raises(RuntimeError) as raised:
                run(two_series, output_dir=out, pipelined=pipelined)
        error = find_bundle_error(raised.value)
        assert error.exit_code == ExitCode.IO and os.strerror(number) in str(error)
        summary = json.loads((out / "summary.json").read_text())
        assert list(summary["series"]) == ([] if key == first else [first]) and not summary["complete"]


def test_pipelined_a_stop_ends_after_the_series_in_hand_and_the_one_being_written(
    tmp_path, run, two_series, monkeypatch
):
    write_phantom_series(two_series / "c", slices=3, patient="phantom-3", seed=2)
    first, second, _ = sorted(series.key for series in find_series(two_series).series)
    begun = threading.Event()  # or the stop may come before the second series is in hand
    before_writing(monkeypatch, first, lambda: begun.wait(60) and os.kill(os.getpid(), signal.SIGTERM))
    restore = RestorationEvaluator._restored

    def in_hand(self, image, key):
        if key == second:
            begun.set()
        # In short waits: the system may hand the signal to another thread, which does not end a wait of this one.
        assert key == first or any(self.stop_asked.wait(0.1) for _ in range(600))
        return restore(self, image, key)

    monkeypatch.setattr(RestorationEvaluator, "_restored", in_hand)
    with pytest.raises(RuntimeError) as raised:
        run(two_series, pipelined=True)
    assert isinstance(find_bundle_error(raised.value), InterruptedRun)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert sorted(summary["series"]) == [first, second] and not summary["failed"]
