"""A run as a process of its own, stopped by a signal: what is finished is kept, and the same command goes on."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from phantom_series import write_phantom_series
from tiny_workflows import write_tiny_weights

import bundle
from bundle.errors import ExitCode

ROOT = Path(bundle.__file__).resolve().parents[1]
SERIES = 8


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """Restores several series; OUTPUT is still to be put in place of None."""
    folder = tmp_path_factory.mktemp("stops")
    for number in range(SERIES):
        write_phantom_series(folder / "in" / f"{number}", slices=16, size=64, patient=f"phantom-{number}", seed=number)
    weights = write_tiny_weights(folder / "model.pt", part="refiner", scale=0.05)
    options = ["--preset", "tiny", "--weights_file", str(weights), "--device", "cpu", "--threads", "1"]
    return [sys.executable, "-m", "bundle", "enhance", str(folder / "in"), None, *options]


def started(command, out):
    line = [str(out) if part is None else part for part in command]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(line, stderr=subprocess.PIPE, text=True, env=environment)


def whole(out):
    """Keys of the series in `out`, each proved to have every file that it should."""
    for folder in out.iterdir():
        assert not folder.name.startswith("."), "nothing temporary is left"
        if folder.is_dir():
            files = json.loads((folder / "private.json").read_text())["files"]
            assert all((folder / name).is_file() for name in files)
            assert len(list((folder / "dicom").iterdir())) == 16
    return {folder.name for folder in out.iterdir() if folder.is_dir()}


@pytest.mark.full
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_between_two_series_and_the_same_command_goes_on(command, tmp_path, number):
    out = tmp_path / "out"
    with started(command, out) as process:
        while not (line := process.stderr.readline()).endswith(": done\n"):
            assert line, "it ended before a series was done"
        process.send_signal(number)
        said = process.stderr.read()
    assert process.returncode == ExitCode.INTERRUPTED, said
    assert said.splitlines()[-1].endswith(
        "stopped between series; what is finished is kept (run the same command again to go on)"
    )
    assert ("press Ctrl-C again" in said) == (number == signal.SIGINT)
    finished = whole(out)
    summary = json.loads((out / "summary.json").read_text())
    assert 1 <= len(finished) < SERIES and finished == set(summary["series"]) and not summary["complete"]
    written = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.parent != out}
    with started(command, out) as process:
        said = process.stderr.read()
    assert process.returncode == ExitCode.DONE, said
    assert said.count("done before, skipped") == len(finished) and len(whole(out)) == SERIES
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert json.loads((out / "summary.json").read_text())["complete"]
