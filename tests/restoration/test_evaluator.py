"""The inference workflow on real DICOM files: geometry, HU, resume, bad series, interruption."""

import contextlib
import errno
import json
import os
import resource
import shutil

import numpy as np
import pytest
from phantom_series import write_phantom_series

from bundle.configuration import exit_code
from bundle.data.sources import find_cases
from bundle.dicom.index import find_series, read_volume
from bundle.errors import ExitCode, InterruptedRun, find_bundle_error
from bundle.restoration.loading import CompactReader


def restored(out):
    folder = next(out.glob("*/dicom"))
    return read_volume(sorted(str(path) for path in folder.iterdir()))


def test_a_derived_series_with_the_inputs_geometry_and_exact_untouched_hu(tmp_path, run):
    hu = write_phantom_series(tmp_path / "in", slices=7)
    run(tmp_path / "in")
    source = find_series(tmp_path / "in").series[0].load()
    result = restored(tmp_path / "out")
    assert np.allclose(result.affine, source.affine, atol=1e-9)
    changed = result.array != hu
    assert 0.2 < changed.mean() < 0.9
    assert not changed[0, -1].any() and not changed[-1, 0].any(), "air in the corners"
    assert exit_code() == ExitCode.DONE
    assert len(list((tmp_path / "out").glob(".*"))) == 0, "nothing temporary is left"


@pytest.mark.parametrize("spacing_mm", [[-1.0, -1.0, -1.0], [1.6, 1.6, 5.0]])
def test_strength_zero_returns_stored_values_on_any_network_grid(tmp_path, run, spacing_mm):
    hu = write_phantom_series(tmp_path / "in", slices=6)
    run(tmp_path / "in", strength=0.0, spacing_mm=spacing_mm)
    assert np.array_equal(restored(tmp_path / "out").array, hu)


def test_resampling_for_the_network_keeps_the_inputs_grid(tmp_path, run):
    hu = write_phantom_series(tmp_path / "in", slices=6)
    run(tmp_path / "in", spacing_mm=[1.6, 1.6, 5.0])
    result = restored(tmp_path / "out").array
    assert result.shape == hu.shape
    # Only the difference was resampled: the input's own noise and edges are still there.
    assert np.abs(result - hu).std() < hu[20:40, 20:40].std()


TILT = np.radians(15.0)
TILTED = {"ImageOrientationPatient": ["1", "0", "0", "0", f"{np.cos(TILT):.9f}", f"{np.sin(TILT):.9f}"]}


@pytest.mark.parametrize("spacing_mm", [[-1.0, -1.0, -1.0], [1.6, 1.6, -1.0]])
def test_a_tilted_gantrys_grid_is_kept(tmp_path, run, spacing_mm):
    hu = write_phantom_series(tmp_path / "in", slices=6, **TILTED)
    source = find_series(tmp_path / "in").series[0].load()
    assert source.is_sheared
    for strength in (0.0, 1.0):
        run(tmp_path / "in", strength=strength, spacing_mm=spacing_mm)
        result = restored(tmp_path / "out")
        np.testing.assert_array_equal(result.affine, source.affine)
        places = [[header.ImagePositionPatient for header in volume.headers] for volume in (source, result)]
        assert places[0] == places[1]
        assert (strength == 0) == bool(np.array_equal(result.array, hu))


@pytest.mark.parametrize("orientation", [["1", "0", "0", "0", "1", "0"], ["-1", "0", "0", "0", "-1", "0"]])
def test_on_disk_and_in_memory_are_the_same(tmp_path, run, orientation):
    write_phantom_series(tmp_path / "in", slices=5, ImageOrientationPatient=orientation)
    results = []
    for folder, scratch in (("disk", {}), ("memory", {"scratch#folder": None})):
        run(tmp_path / "in", output_dir=tmp_path / folder, save_nifti=True, steps=2, num_samples=2, **scratch)
        (out,) = (path.parent for path in (tmp_path / folder).glob("*/summary.json"))
        volume = read_volume(str(out / "dicom"))
        nifti = [path.read_bytes() for path in sorted(out.rglob("*.nii.gz"))]
        uids = [header.SOPInstanceUID for header in volume.headers]
        results.append((volume.stored.tobytes(), uids, nifti, json.loads((out / "summary.json").read_text())))
        assert len(nifti) == 2 and not any(path.name.startswith(".") for path in (tmp_path / folder).rglob("*"))
    assert results[0] == results[1]


def test_a_disk_without_room_ends_the_run_before_anything_is_written(tmp_path, run, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    write_phantom_series(tmp_path / "in", slices=3)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(RuntimeError) as raised:
        run(tmp_path / "in")
    error = find_bundle_error(raised.value)
    assert error.exit_code == ExitCode.IO and "is full" in str(error) and "--scratch_dir" in str(error)
    assert [path.name for path in (tmp_path / "out").rglob("*")] == ["summary.json"]
    run(tmp_path / "in", **{"scratch#folder": None})
    assert exit_code() == ExitCode.DONE


@contextlib.contextmanager
def files_of_at_most(size):
    """A disk that has no room for a larger file: writing on ends with EFBIG."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_fills_while_a_series_is_written_leaves_whole_ones_only(tmp_path, run):
    for name in ("a", "b"):
        write_phantom_series(tmp_path / "in" / name, slices=3, size=32, patient=name)
    first, second = find_cases(tmp_path / "in").cases
    shutil.rmtree(tmp_path / "in" / second.label)
    write_phantom_series(tmp_path / "in" / second.label, slices=12, size=64, patient=second.label)
    out, options = tmp_path / "out", {"save_nifti": True, "scratch#folder": None}
    with files_of_at_most(40_000), pytest.raises(RuntimeError) as raised:
        run(tmp_path / "in", **options)
    assert find_bundle_error(raised.value).exit_code == ExitCode.IO
    assert sorted(path.name for path in out.iterdir()) == sorted([first.key, "summary.json"]), "and nothing temporary"
    summary = json.loads((out / "summary.json").read_text())
    assert list(summary["series"]) == [first.key] and not summary["complete"]
    written = {path: path.stat().st_mtime_ns for path in (out / first.key).rglob("*.dcm")}
    assert len(written) == 3
    run(tmp_path / "in", **options)
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert len(list((out / second.key).rglob("*.dcm"))) == 12


@pytest.mark.parametrize("below", ["", "out", "deep/out"])
def test_an_output_in_the_input_is_refused(tmp_path, run, below):
    write_phantom_series(tmp_path / "in", slices=3)
    with pytest.raises(RuntimeError) as raised:
        run(tmp_path / "in", output_dir=tmp_path / "in" / below)
    assert "output_dir lies in dataset_dir" in str(find_bundle_error(raised.value))
    assert not list((tmp_path / "in").rglob("*.json"))
    run(tmp_path / "in", output_dir=tmp_path)  # the input in the output harms nothing
    assert exit_code() == ExitCode.DONE


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        *(
            (key, "abc", f"{key} must be a")
            for key in ("steps", "num_samples", "strength", "overlap", "seed", "threads")
        ),
        *((key, True, f"{key} must be a") for key in ("steps", "strength", "max_samples", "eta", "start_time")),
        ("steps", 2.5, "steps must be a whole number, at least 1, at most 1000"),
        ("seed", 1.5, "seed must be a whole number"),
        ("max_samples", "abc", "max_samples must be a whole number"),
        ("threads", -1, "threads must be a whole number, at least 0"),
        ("tile_size", 512, "tile_size must be three numbers"),
        ("tile_size", [512, 512, "x"], "tile_size must be a whole number"),
        ("spacing_mm", [1, 1], "spacing_mm must be three numbers"),
        ("spacing_mm", [1, 1, 0], "spacing_mm cannot be 0"),
        ("overlap", 1, "overlap must be a number, at least 0, below 1"),
        ("device", "foo", "device 'foo' is unknown"),
        ("networks_from", "foo", "networks_from 'foo' is unknown"),
    ],
)
def test_values_of_a_wrong_kind_are_the_users_to_change(tmp_path, run, key, value, message):
    write_phantom_series(tmp_path / "in", slices=3, size=16)
    with pytest.raises(RuntimeError) as raised:
        run(tmp_path / "in", **{key: value})
    error = find_bundle_error(raised.value)
    assert error is not None and message in str(error) and error.exit_code == ExitCode.USER


def test_uneven_series_are_restored_only_when_asked(tmp_path, run):
    hu = write_phantom_series(tmp_path / "in", slices=8, drop=(3,))
    with pytest.raises(RuntimeError) as raised:
        run(tmp_path / "in")
    assert "missing" in str(find_bundle_error(raised.value))
    run(tmp_path / "in", gaps="resample", strength=0.0, transfer_syntax="jpeg_ls")
    assert exit_code() == ExitCode.DONE
    result = restored(tmp_path / "out").array
    assert result.shape == hu.shape
    present = [0, 1, 2, 4, 5, 6, 7]
    np.testing.assert_array_equal(result[:, :, present], hu[:, :, present])
    summary = json.loads(next((tmp_path / "out").glob("*/summary.json")).read_text())
    assert summary["interpolated_slices"] == [3]
    with pytest.raises(RuntimeError) as raised:
        run(tmp_path / "in", gaps="resample", transfer_syntax="jpeg")
    assert "transfer_syntax must be one of" in str(find_bundle_error(raised.value))


def test_a_lost_end_slice_is_counted(tmp_path, run):
    write_phantom_series(tmp_path / "in", slices=5)
    (tmp_path / "in" / "IM9999.dcm").write_bytes(b"")
    run(tmp_path / "in", strength=0.0)
    assert exit_code() == ExitCode.PARTIAL
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert len(summary["series"]) == 1
    assert [(r["where"], "one may be missing" in r["reason"]) for r in summary["refused"]] == [("IM9999.dcm", True)]


def test_a_second_run_skips_and_other_settings_do_not(tmp_path, run):
    write_phantom_series(tmp_path / "in", slices=4)
    run(tmp_path / "in")
    first = next((tmp_path / "out").glob("*/dicom"))
    before = {path.name: path.stat().st_mtime_ns for path in first.iterdir()}
    run(tmp_path / "in")
    assert {path.name: path.stat().st_mtime_ns for path in first.iterdir()} == before
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert next(iter(summary["series"].values()))["uid_mapping"], "what the first run knew is kept"
    for changed in ({"strength": 0.5}, {"series_suffix": "other"}):
        run(tmp_path / "in", **changed)
        after = {path.name: path.stat().st_mtime_ns for path in first.iterdir()}
        assert after != before, changed
        before = after
    next(first.iterdir()).unlink()
    run(tmp_path / "in", series_suffix="other")
    assert len(list(first.iterdir())) == 4


def test_a_bad_series_is_named_and_the_rest_goes_on(tmp_path, run):
    write_phantom_series(tmp_path / "in" / "good", slices=4)
    write_phantom_series(tmp_path / "in" / "gap", slices=8, drop=(3,), patient="phantom-2", seed=1)
    run(tmp_path / "in")
    assert exit_code() == ExitCode.PARTIAL
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert len(summary["series"]) == 1 and len(summary["refused"]) == 1
    run(tmp_path / "in", tolerate_bad_series=True)
    assert exit_code() == ExitCode.DONE


def break_reading(monkeypatch, key, error):
    """Have the reader fail on the series with that key."""
    volume = CompactReader.get_data

    def broken(self, image):
        if image.key == key:
            raise error
        return volume(self, image)

    monkeypatch.setattr(CompactReader, "get_data", broken)


@pytest.mark.parametrize("pipelined", [False, True])
def test_an_unforeseen_error_in_one_series_is_kept_and_the_rest_goes_on(
    tmp_path, run, two_series, pipelined, monkeypatch
):
    first = min(series.key for series in find_series(two_series).series)
    logs = tmp_path / "logs"
    logs.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(logs))
    break_reading(monkeypatch, first, ZeroDivisionError("by zero"))
    run(two_series, pipelined=pipelined)
    assert exit_code() == ExitCode.DEFECT
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert list(summary["failed"]) == [first] and len(summary["series"]) == 1
    (log,) = logs.glob("*.log")
    assert summary["failed"][first] == f"ZeroDivisionError: by zero (a defect of ours; traceback in {log})"
    assert "ZeroDivisionError: by zero" in log.read_text()
    monkeypatch.undo()
    run(two_series, pipelined=pipelined)
    assert exit_code() == ExitCode.DONE and len(list((tmp_path / "out").glob("*/dicom"))) == 2


@pytest.mark.parametrize("pipelined", [False, True])
def test_a_disk_that_fills_up_ends_the_run_also_while_the_next_series_is_read(
    tmp_path, run, two_series, pipelined, monkeypatch
):
    last = max(series.key for series in find_series(two_series).series)
    break_reading(monkeypatch, last, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(RuntimeError) as raised:
        run(two_series, pipelined=pipelined)
    assert find_bundle_error(raised.value).exit_code == ExitCode.IO
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert len(summary["series"]) == 1 and not summary["failed"]


@pytest.mark.parametrize(
    "options", [{"num_samples": 2}, {"steps": 2, "flips": 2}, {"steps": 51, "sampler": "ddim", "start_time": 0.05}]
)
def test_settings_that_no_series_can_be_restored_with_end_the_run_before_any(tmp_path, run, two_series, options):
    with pytest.raises(RuntimeError) as raised:
        run(two_series, **options)
    assert find_bundle_error(raised.value).exit_code == ExitCode.USER
    assert not (tmp_path / "out").exists()


def test_no_identifier_outside_the_private_summary(tmp_path, run, caplog, capsys):
    write_phantom_series(tmp_path / "DOE_JANE", slices=4, patient="SECRET-42")
    run(tmp_path / "DOE_JANE")
    series = next((tmp_path / "out").glob("*/summary.json")).read_text()
    said = series + caplog.text + "".join(capsys.readouterr())
    assert "SECRET-42" not in said and "DOE_JANE" not in series and "2.25." not in series


def test_interrupted_between_series(tmp_path, run, monkeypatch):
    from bundle.restoration import evaluator

    write_phantom_series(tmp_path / "in" / "a", slices=4)
    write_phantom_series(tmp_path / "in" / "b", slices=4, patient="phantom-2", seed=1)
    process = evaluator.RestorationEvaluator.process

    def stop_after_one(self, case, data):
        rest = process(self, case, data)
        self.stop_asked.set()
        return rest

    monkeypatch.setattr(evaluator.RestorationEvaluator, "process", stop_after_one)
    with pytest.raises(RuntimeError) as raised:
        run(tmp_path / "in")
    assert isinstance(find_bundle_error(raised.value), InterruptedRun)
    assert len(list((tmp_path / "out").glob("*/dicom"))) == 1
    assert not json.loads((tmp_path / "out" / "summary.json").read_text())["complete"]
    monkeypatch.undo()
    run(tmp_path / "in")
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["complete"]
    assert len(list((tmp_path / "out").glob("*/dicom"))) == 2


def test_same_inputs_give_the_same_pixels_and_uids(tmp_path, run):
    write_phantom_series(tmp_path / "in", slices=4)
    results = []
    for folder in ("first", "second"):
        run(tmp_path / "in", output_dir=str(tmp_path / folder))
        volume = restored(tmp_path / folder)
        results.append((volume.stored.tobytes(), [header.SOPInstanceUID for header in volume.headers]))
    assert results[0] == results[1]
