"""The report as a browser shows it, and what it must never hold."""

import datetime
import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from phantom_series import phantom_hu, write_phantom_series
from real_parts import missing
from tiny_workflows import run_tiny, write_tiny_weights

from bundle.configuration import bundle_root
from bundle.dicom.index import read_volume
from bundle.files import file_digest
from bundle.restoration.domain import judge
from bundle.restoration.nifti import NiftiSource
from bundle.restoration.planes import planes, spread
from bundle.restoration.report import _measured, _model_card, polyline, write_report
from bundle.restoration.restored import RestoredSlices

NOW = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
SUMMARY = {
    "schema": 1, "series": "0123456789abcdef", "shape": [128, 128, 6], "noise_hu_before": 15.0, "noise_hu_after": 9.0,
    "warnings": ["look at <this>"], "settings": {"steps": 1}, "weights_sha256": "ab", "software_version": "0",
}  # fmt: skip


def deviation_hu(shape):
    """An uncertainty that is nowhere like its neighbours, in whole tenths, HU float32 (H, W, D)."""
    i, j, k = np.indices(shape)
    return ((i // 4 + 2 * (j // 4) + 10 * k) / 10).astype(np.float32)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    hu = phantom_hu(size=128, slices=6)
    write_phantom_series(folder / "in", size=128, slices=6, hu=hu, PatientName="Secret^Name", PatientID="SECRET-7")
    volume = read_volume(str(folder / "in"))
    change = np.zeros(hu.shape, np.float32)
    change[40:80, 40:80] = -20
    restored = RestoredSlices(volume, change)
    path = folder / "report.html"
    write_report(path, volume, restored, uncertainty=deviation_hu(hu.shape), summary=SUMMARY, now=NOW)
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
    assert found == planes(restored.source, restored, deviation_hu(hu.shape))


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


def of_line(chart, number):
    """What a line of a chart shows: x and y, read from its points as a reader would from the axes."""
    points = np.array([point.split(",") for point in chart["lines"][number].split()], float)
    first, last = map(float, chart["ends"])
    return first + points[:, 0] / 420 * (last - first), (180 - points[:, 1]) / 180 * float(chart["top"])


@pytest.fixture(scope="module")
def halved():
    """What is measured where white noise of 20 HU on soft tissue of 50 HU became 10 HU, and the number of voxels."""
    rng = np.random.default_rng(0)
    before, after = (rng.normal(50, sigma, (96, 96, 8)).astype(np.float32) for sigma in (20, 10))
    source = NiftiSource(before, np.diag([0.7, 0.7, 2.0, 1.0]))
    return _measured(source, RestoredSlices(source, after - before)), before.size


def test_noise_levels_are_those_of_before_and_after(halved):
    ((name, before, after),) = halved[0]["rows"]
    assert "soft tissue" in name
    assert before == pytest.approx(20, rel=0.02) and after == pytest.approx(10, rel=0.02)


def test_noise_spectra_add_up_to_the_variances_of_before_and_after(halved):
    variances = []
    for number in (0, 1):
        frequency, power = of_line(halved[0]["nps"], number)
        step = frequency[1] - frequency[0]
        rings = np.pi * ((frequency + step / 2) ** 2 - (frequency - step / 2) ** 2)
        # Rings end at Nyquist's frequency, 1 / 1.4 mm; white noise is as strong in the corners, and at 0.
        assert frequency[-1] == pytest.approx(1 / 1.4, rel=0.01)
        variances.append((power * rings).sum() / rings.sum() / 0.7**2)
    assert variances == pytest.approx([400, 100], rel=0.05)
    assert variances[0] / variances[1] == pytest.approx(4, rel=0.05)


def test_the_histogram_counts_the_voxels_of_before_and_after(halved):
    measured, voxels = halved
    for number, shares in enumerate([(0.383, 0.242), (0.683, 0.157)]):  # of a Gaussian: 40 to 60 HU, and 60 to 80
        hu, height = of_line(measured["histogram"], number)
        counts = 10**height - 1
        assert hu[counts.argmax()] == pytest.approx(50, abs=0.5) and counts.sum() == pytest.approx(voxels, rel=0.01)
        for at, share in zip((50, 70), shares, strict=True):
            assert counts[np.abs(hu - at).argmin()] / voxels == pytest.approx(share, rel=0.03)


# By name: what is chosen, and in an axial view the limits of the window and the difference's range in HU.
VIEWS = {
    "as it opens": ({}, (-150, 250, 25)),
    "axial": ({"plane": "axial", "slice": 0}, (-150, 250, 25)),
    "lung": ({"window": "lung"}, (-1350, 150, 25)),
    "bone": ({"window": "bone"}, (-500, 1500, 25)),
    "range": ({"window": "soft tissue", "range": "100"}, (-150, 250, 100)),
    "coronal": ({"plane": "coronal", "slice": 2, "range": "25"}, None),
    "sagittal": ({"plane": "sagittal", "slice": 9}, None),
}
# Same cuts of a volume (H, W, D); the phantom has 128 rows and columns and 6 slices. What was chosen stays.
CUTS = {
    "as it opens": lambda a: a[:, :, 3],
    "coronal": lambda a: a[:, spread(128, 12)[2]],
    "sagittal": lambda a: a[spread(128, 12)[9]],
}
CANVASES = ("input", "restored", "change", "deviation")
# No timers: a browser's virtual time runs out while they wait.
WALK = """<script>
const drawn = () => new Promise((done) => {
  new MutationObserver(done).observe(document.body, { attributeFilter: ["data-means"] });
});
(async () => {
  const seen = {};
  if (!document.body.dataset.means) await drawn();
  for (const [name, chosen] of Object.entries(VIEWS)) {
    let shown = Promise.resolve();
    for (const [key, value] of Object.entries(chosen)) {  // at once: what is still unpacked is asked for again
      const control = byId(key);
      shown = drawn();
      control.value = control.options ? [...control.options].find((one) => one.text.startsWith(value)).value : value;
      control.dispatchEvent(new Event("input"));
    }
    await shown;
    seen[name] = { means: document.body.dataset.means };
    for (const key of CANVASES) {
      const canvas = byId(key), flat = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
      seen[name][key] = { shape: [canvas.height, canvas.width], red: [...flat].filter((_, i) => i % 4 === 0) };
    }
  }
  document.body.dataset.seen = JSON.stringify(seen);
})();
</script></body>"""


@pytest.fixture(scope="module")
def seen(report, tmp_path_factory):
    """What a browser drew, by view: the means that the page says, and the canvases' pixels (rows, columns)."""
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None) or missing("no Chromium (Debian: chromium)")
    folder = tmp_path_factory.mktemp("browser")
    walk = WALK.replace("VIEWS", json.dumps({name: chosen for name, (chosen, _) in VIEWS.items()}))
    walk = walk.replace("CANVASES", json.dumps(CANVASES))
    (folder / "page.html").write_text(report[0].read_text().replace("</body>", walk))
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += [f"--user-data-dir={folder / 'user'}", "--virtual-time-budget=10000", "--dump-dom"]
    done = subprocess.run(
        [*command, (folder / "page.html").as_uri()], capture_output=True, text=True, timeout=300, check=True
    )
    found = re.search(r'data-seen="([^"]+)"', done.stdout)
    assert found, f"the page did not come to its end:\n{done.stderr[-2000:]}"
    return {
        name: {
            "means": [float(mean) for mean in view["means"].split()],
            **{key: np.reshape(view[key]["red"], view[key]["shape"]) for key in CANVASES},
        }
        for name, view in json.loads(html.unescape(found[1])).items()
    }


def greys(report, name):
    """What the canvases have to show in a view, 0 to 255, as the volume's cut lies: with rows and columns swapped."""
    _, hu, restored = report
    low, high, most = VIEWS[name][1] or (-150, 250, 25)
    cut = CUTS.get(name, lambda a: a[:, :, 0])
    before, after, deviation = (cut(volume) for volume in (hu, restored.array(), deviation_hu(hu.shape)))
    shown = [(volume - low) / (high - low) * 255 for volume in (before, after)]
    shown += [127.5 + (after - before) / most * 127.5, deviation / most * 255]
    return dict(zip(CANVASES, (np.clip(values, 0, 255) for values in shown), strict=True))


@pytest.mark.parametrize("name", VIEWS)
def test_a_browser_draws_what_was_chosen(report, seen, name):
    expected = greys(report, name)
    means = [expected[key].mean() for key in CANVASES[:3]]
    np.testing.assert_allclose(seen[name]["means"], means, atol=0.02)
    for key in CANVASES:
        drawn = seen[name][key]
        if VIEWS[name][1]:  # pixel by pixel
            np.testing.assert_allclose(drawn, expected[key].T, atol=0.51, err_msg=key)
        else:  # slices of 2.5 mm are drawn higher than pixels of 0.8 mm are wide
            assert drawn.shape == (19, 128)
            assert drawn.mean() == pytest.approx(expected[key].mean(), abs=2)


def test_window_and_range_change_the_pixels_that_they_are_for(seen):
    for one, other, changed in [("axial", "lung", CANVASES[:2]), ("axial", "range", CANVASES[2:])]:
        assert tuple(key for key in CANVASES if (seen[one][key] != seen[other][key]).any()) == changed
