"""The shipped weights on every real CT series: what is delivered passes the checks of others and of arithmetic."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from dciodvfy import DCIODVFY, errors, filled

from bundle.dicom.index import find_series
from bundle.dicom.series import Series
from bundle.dicom.uids import is_valid_uid
from bundle.errors import ExitCode
from bundle.metrics.masks import body_mask
from bundle.metrics.noise import noise_level

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "ct"
UNEVEN = "ge_head_tilt"  # its spacing changes inside the series
NAMES = sorted(path.name for path in DATA.iterdir() if path.is_dir() and path.name != UNEVEN) if DATA.exists() else []

pytestmark = [pytest.mark.full, pytest.mark.skipif(not NAMES, reason="no real series here")]


@pytest.fixture(scope="module")
def delivered(tmp_path_factory):
    """The output folder of one run over all series, about ten minutes on one thread."""
    out = tmp_path_factory.mktemp("out")
    command = [sys.executable, "-m", "bundle", "enhance", str(DATA), str(out), "--threads", "1", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == ExitCode.PARTIAL, done.stderr[-2000:]
    return out


def only(folder: Path) -> Series:
    (series,) = find_series(folder).series
    return series


def result_of(name: str, delivered: Path) -> tuple[Series, Series]:
    """The source and what was made of it."""
    source = only(DATA / name)
    return source, only(delivered / source.key / "dicom")


def test_every_series_is_there_and_the_uneven_one_refused_by_name(delivered):
    summary = json.loads((delivered / "summary.json").read_text())
    assert set(summary["series"]) == {only(DATA / name).key for name in NAMES} and not summary["failed"]
    assert all(series["status"] == "done" for series in summary["series"].values())
    assert summary["refused"] and all(UNEVEN in entry["where"] for entry in summary["refused"])
    assert not list(delivered.rglob(".*")), "nothing temporary is left"


@pytest.mark.parametrize("name", NAMES)
def test_a_series_is_its_source_with_less_noise(delivered, name):
    source, result = (series.load() for series in result_of(name, delivered))
    assert result.shape == source.shape
    np.testing.assert_array_equal(result.affine, source.affine)
    body = body_mask(source.array)
    change = result.array - source.array
    assert 0.01 < np.mean(change[body] != 0) and abs(change[body].mean()) < 1.0
    assert np.abs(change[source.array < -1100]).max(initial=0) == 0, "padding stays"
    assert noise_level(result.array).mean() < noise_level(source.array).mean()
    identifiers = [{str(header.SOPInstanceUID) for header in volume.headers} for volume in (source, result)]
    assert len(identifiers[1]) == source.shape[2] and not identifiers[0] & identifiers[1]
    studies = [str(volume.headers[0].get("StudyInstanceUID", "")) for volume in (source, result)]
    assert studies[0] == studies[1] or not is_valid_uid(studies[0])


@pytest.mark.skipif(not DCIODVFY.is_file(), reason="dciodvfy is not installed")
@pytest.mark.parametrize("name", NAMES)
def test_dciodvfy_finds_no_error_that_the_source_lacks(delivered, name, tmp_path):
    source, result = result_of(name, delivered)
    for k in sorted({0, source.shape[2] // 2, source.shape[2] - 1}):
        own = errors(filled(source.paths[k], tmp_path / "source.dcm"))
        assert errors(Path(result.paths[k])) <= own


@pytest.mark.parametrize("name", NAMES)
def test_simpleitk_reads_the_same_hu_at_the_same_place(delivered, name):
    _, result = result_of(name, delivered)
    sitk = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(result.paths)
    image, volume = reader.Execute(), result.load()
    np.testing.assert_allclose(sitk.GetArrayViewFromImage(image), volume.array.T, atol=1e-3)
    np.testing.assert_allclose(image.GetOrigin(), volume.affine[:3, 3], atol=1e-4)
