"""The report as a browser shows it, and what it must never hold."""

import base64
import datetime
import re
import shutil
import subprocess
import zlib

import numpy as np
import pytest
from phantom_series import phantom_hu, write_phantom_series
from tiny_workflows import run_tiny, write_tiny_weights

from bundle.dicom.index import read_volume
from bundle.restoration.report import MOST_BYTES, packed, polyline, write_report
from bundle.restoration.restored import RestoredSlices

NOW = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
SUMMARY = {
    "schema": 1, "series": "0123456789abcdef", "shape": [128, 128, 6], "noise_hu_before": 15.0, "noise_hu_after": 9.0,
    "warnings": ["look at <this>"], "settings": {"steps": 1}, "weights_sha256": "ab", "software_version": "0",
}  # fmt: skip


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    hu = phantom_hu(size=128, slices=6)
    write_phantom_series(folder / "in", size=128, slices=6, hu=hu, PatientName="Secret^Name", PatientID="SECRET-7")
    volume = read_volume(str(folder / "in"))
    change = np.zeros(hu.shape, np.float32)
    change[40:80, 40:80] = -20
    restored = RestoredSlices(volume, change)
    deviation = np.full(hu.shape, 5.0, np.float32)
    path = folder / "report.html"
    write_report(path, volume, restored, uncertainty=deviation, summary=SUMMARY, now=NOW)
    return path, hu, restored


def unpacked(text: str, rows: int, columns: int) -> np.ndarray:
    flat = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)
    half = rows * columns
    steps = (flat[:half] | (flat[half:].astype(np.uint16) << 8)).astype(np.uint16).view(np.int16)
    return np.cumsum(steps.reshape(rows, columns), axis=1, dtype=np.int16)


def test_packed_pictures_are_exact():
    values = np.random.default_rng(0).integers(-32000, 32000, (7, 11)).astype(np.int16)
    np.testing.assert_array_equal(unpacked(packed(values), 7, 11), values)


def test_one_file_that_asks_for_nothing_and_names_nobody(report):
    text = report[0].read_text()
    assert report[0].stat().st_size < MOST_BYTES
    assert not re.search(r'(src|href)="(?!https://docs\.monai\.io/)', text) and "import(" not in text
    for secret in ("Secret", "SECRET-7", "phantom-1", "2.25."):
        assert secret not in text
    assert "look at &lt;this&gt;" in text and "Not a medical device" in text


def test_the_pixels_are_the_series(report):
    path, hu, restored = report
    text = '"([^"]+)"'
    pattern = f'"change": {text}, "columns": 128, "deviation": {text}, "input": {text}, "label": "slice 4"'
    found = re.search(pattern, path.read_text())
    change, deviation, before = (unpacked(text, 128, 128) for text in found.groups())
    np.testing.assert_array_equal(before, hu[:, :, 3].T)
    np.testing.assert_array_equal(change / 10, (restored[:, :, 3] - hu[:, :, 3]).T)
    assert (deviation == 50).all()


def test_the_workflow_writes_it_when_asked(tmp_path):
    write_phantom_series(tmp_path / "in", size=48, slices=4)
    weights = write_tiny_weights(tmp_path / "model.pt", part="denoiser", scale=0.02)
    for asked in (False, True):  # a finished series is done again when a report is asked for
        output = tmp_path / "out"
        run_tiny(
            "inference.yaml",
            "inference",
            dataset_dir=tmp_path / "in",
            output_dir=output,
            weights=weights,
            report=asked,
        )
        assert len(list(output.glob("*/report.html"))) == asked


def test_a_line_stays_in_its_frame():
    points = [
        point.split(",") for point in polyline(np.arange(3.0), np.array([0, 9, 2.0]), width=10, height=4, top=8).split()
    ]
    assert points == [["0.0", "4.0"], ["5.0", "0.0"], ["10.0", "3.0"]]


@pytest.mark.full
def test_a_browser_draws_it(report, tmp_path):
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("no Chromium")
    path, hu, restored = report
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += [f"--user-data-dir={tmp_path}", "--virtual-time-budget=10000", "--dump-dom", path.as_uri()]
    page = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout
    means = [float(value) for value in re.search(r'data-means="([^"]+)"', page).group(1).split()]

    def shown(volume_hu):  # soft tissue window: -150 to 250 HU
        return np.clip((volume_hu + 150) / 400 * 255, 0, 255).mean()

    k = 3  # the slider starts in the middle
    change = restored[:, :, k] - hu[:, :, k]
    expected = [shown(hu[:, :, k]), shown(restored[:, :, k]), np.clip(127.5 + change / 25 * 127.5, 0, 255).mean()]
    np.testing.assert_allclose(means, expected, atol=0.02)
    assert abs(means[0] - means[1]) > 0.1
