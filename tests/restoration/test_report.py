"""The report as a browser shows it, and what it must never hold."""

import datetime
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from phantom_series import phantom_hu, write_phantom_series
from tiny_workflows import run_tiny, write_tiny_weights

from bundle.configuration import bundle_root
from bundle.dicom.index import read_volume
from bundle.files import file_digest
from bundle.restoration.domain import judge
from bundle.restoration.nifti import NiftiSource
from bundle.restoration.planes import planes, spread
from bundle.restoration.report import _model_card, polyline, write_report
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


def test_one_file_that_asks_for_nothing_and_names_nobody(report):
    text = report[0].read_text()
    assert not re.search(r'(src|href)="', text) and "import(" not in text and "http" not in text
    for secret in ("Secret", "SECRET-7", "phantom-1", "2.25."):
        assert secret not in text
    assert "look at &lt;this&gt;" in text and "Not a medical device" in text


def test_a_study_of_nothing_but_noise_stays_under_15_megabytes(tmp_path):
    """What packs worst, with an uncertainty and the model card inside."""
    rng = np.random.default_rng(0)
    hu = np.round(rng.normal(40, 400, (512, 512, 30))).astype(np.float32)
    source = NiftiSource(hu, np.diag([0.7, 0.7, 2.0, 1.0]))
    restored = RestoredSlices(source, rng.normal(0, 200, hu.shape).astype(np.float32))
    deviation = rng.normal(100, 30, hu.shape).astype(np.float32)
    digest = file_digest(Path(bundle_root()) / "models" / "model.pt")
    summary = {**SUMMARY, "weights_sha256": digest}
    write_report(tmp_path / "a.html", source, restored, uncertainty=deviation, summary=summary, now=NOW)
    assert 10_000_000 < (tmp_path / "a.html").stat().st_size < 15_000_000


@pytest.mark.parametrize(
    ("ranges", "shown"),
    [
        ({"noise_hu": [5, 40], "pixel_mm": [0.5, 1]}, ("soft", "yes")),
        ({"noise_hu": [5, 20]}, ("warning", "no; noise 30 HU is above 20")),
        (
            {"noise_hu": [5, 20], "pixel_mm": [0.8, 1]},
            ("warning", "no; noise 30 HU is above 20; pixel size 0.7 mm is below 0.8"),
        ),
        ({}, ("warning", "unknown")),
    ],
)
def test_it_says_whether_the_weights_were_made_for_such_a_series(report, tmp_path, ranges, shown):
    path, _, restored = report
    assert "what the weights were made for" not in path.read_text(), "nothing where it was not judged"
    domain = judge({"noise_hu": 30.0, "pixel_mm": 0.7}, ranges)
    summary = {**SUMMARY, "in_domain": domain.word, "domain": domain.described()}
    write_report(tmp_path / "a.html", restored.source, restored, uncertainty=None, summary=summary, now=NOW)
    said = re.findall(
        r'<p class="(\w+)">Within what the weights were made for: (.*)</p>', (tmp_path / "a.html").read_text()
    )
    assert said == [shown]


def test_the_link_leads_to_the_model_card_of_the_very_weights(report, tmp_path, monkeypatch):
    path, _, restored = report
    assert "No model card" in path.read_text() and "model-card" not in path.read_text()
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "README.md").write_text("SHA-256 `ab`: they <fail> on heads")
    monkeypatch.setattr("bundle.restoration.report.bundle_root", lambda: str(tmp_path))
    write_report(tmp_path / "a.html", restored.source, restored, uncertainty=None, summary=SUMMARY, now=NOW)
    text = (tmp_path / "a.html").read_text()
    assert re.findall(r'href="([^"]*)"', text) == ["#model-card"] and text.count('id="model-card"') == 1
    assert "they &lt;fail&gt; on heads" in text


def test_the_shipped_weights_have_a_model_card():
    models = Path(bundle_root()) / "models"
    assert "small" in _model_card(file_digest(models / "model.pt"))


def test_the_pictures_are_those_of_the_series(report):
    path, hu, restored = report
    found = json.loads(re.search(r"const planes = (.*);\n", path.read_text())[1])
    assert found == planes(restored.source, restored, np.full(hu.shape, 5.0, np.float32))


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


@pytest.fixture(scope="module")
def browser():
    names = ("chromium", "chromium-browser", "google-chrome")
    return next(filter(None, map(shutil.which, names)), None) or pytest.skip("no Chromium (Debian: chromium)")


# Plane, place on its slider, and the same cut of a volume (H, W, D); the phantom has 128 rows and columns and 6 slices.
CUTS = {
    "as it opens": (None, lambda a: a[:, :, 3]),
    "axial": ((0, 0), lambda a: a[:, :, 0]),
    "coronal": ((1, 2), lambda a: a[:, spread(128, 12)[2]]),
    "sagittal": ((2, 9), lambda a: a[spread(128, 12)[9]]),
}


@pytest.mark.full
@pytest.mark.parametrize("name", CUTS)
def test_a_browser_draws_what_the_slider_says(browser, report, tmp_path, name):
    path, hu, restored = report
    place, cut = CUTS[name]
    page = path.read_text()
    if place:
        moves = "".join(
            f'byId("{key}").value = {value}; byId("{key}").dispatchEvent(new Event("input"));'
            for key, value in zip(("plane", "slice"), place, strict=True)
        )
        page = page.replace("</body>", f"<script>{moves}</script></body>")
    (tmp_path / "page.html").write_text(page)
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += [f"--user-data-dir={tmp_path / 'user'}", "--virtual-time-budget=10000", "--dump-dom"]
    done = subprocess.run(
        [*command, (tmp_path / "page.html").as_uri()], capture_output=True, text=True, timeout=300, check=True
    )
    means = [float(value) for value in re.search(r'data-means="([^"]+)"', done.stdout).group(1).split()]

    def shown(volume_hu):  # soft tissue window: -150 to 250 HU
        return np.clip((volume_hu + 150) / 400 * 255, 0, 255).mean()

    before, after = cut(hu), cut(restored.array())
    expected = [shown(before), shown(after), np.clip(127.5 + (after - before) / 25 * 127.5, 0, 255).mean()]
    np.testing.assert_allclose(means, expected, atol=0.02)
