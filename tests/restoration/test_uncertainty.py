"""The Parametric Map: right values at right places, whole, repeatable, lawful DICOM."""

import datetime
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from phantom_series import write_phantom_series

from bundle.dicom.index import read_volume
from bundle.dicom.writer import Derivation, write_derived_series
from bundle.restoration.nifti import NiftiSource
from bundle.restoration.pooling import pooled
from bundle.restoration.registry import Calibration
from bundle.restoration.restored import RestoredSlices
from bundle.restoration.uncertainty import STEP_HU, Uncertainty, uncertainty_of, write_parametric_map

DCIODVFY = Path(sys.executable).with_name("dciodvfy")
NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, 6)
DERIVATION = Derivation(
    description="d", series_suffix="enhanced", settings_digest="ab", weights_digest="cd", software_version="0"
)


@pytest.fixture(scope="module")
def derived(tmp_path_factory):
    folder = tmp_path_factory.mktemp("series")
    write_phantom_series(folder / "in", slices=5, ImageOrientationPatient=["0", "1", "0", "-1", "0", "0"])
    volume = read_volume(str(folder / "in"))
    return write_derived_series(volume, volume.array + 1, folder / "out", derivation=DERIVATION, now=NOW)


def deviation():
    return np.random.default_rng(0).gamma(4, 3, (64, 64, 5)).astype(np.float16)


def test_frames_hold_the_scaled_deviation_at_the_derived_slices(tmp_path, derived):
    uncertainty = Uncertainty(deviation(), scale=1.5)
    image = pydicom.dcmread(write_parametric_map(tmp_path, uncertainty, derived, now=NOW))
    mapping = image.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]
    values = image.pixel_array * mapping.RealWorldValueSlope + mapping.RealWorldValueIntercept
    assert mapping.MeasurementUnitsCodeSequence[0].CodeValue == "[hnsf'U]"
    sources = {str(pydicom.dcmread(p, stop_before_pixels=True).SOPInstanceUID): k for k, p in enumerate(derived.paths)}
    for frame, groups in zip(values, image.PerFrameFunctionalGroupsSequence, strict=True):
        item = groups.DerivationImageSequence[0].SourceImageSequence[0]
        k = sources[str(item.ReferencedSOPInstanceUID)]
        header = pydicom.dcmread(derived.paths[k], stop_before_pixels=True)
        assert list(groups.PlanePositionSequence[0].ImagePositionPatient) == list(header.ImagePositionPatient)
        np.testing.assert_allclose(frame, 1.5 * pooled(deviation()[:, :, k]).T, atol=STEP_HU / 2 + 1e-5)
    assert image.StudyInstanceUID == header.StudyInstanceUID and image.SeriesInstanceUID != header.SeriesInstanceUID


def test_the_same_inputs_give_the_same_bytes_and_other_values_other_uids(tmp_path, derived):
    first, second = (
        write_parametric_map(tmp_path / name, Uncertainty(deviation(), scale=1), derived, now=NOW) for name in "ab"
    )
    assert first.read_bytes() == second.read_bytes()
    other = write_parametric_map(tmp_path / "c", Uncertainty(deviation(), scale=2), derived, now=NOW)
    uids = [pydicom.dcmread(path).SOPInstanceUID for path in (first, other)]
    assert uids[0] != uids[1]


def test_the_floor_is_added_in_quadrature_where_something_was_changed():
    drawn = np.full((4, 4, 2), 3.0, np.float32)
    drawn[0] = 0
    uncertainty = Uncertainty(drawn, scale=1.0, floor_hu=np.array([4.0, 0.0]))
    np.testing.assert_allclose(uncertainty[:, :, 0][1:], 5.0)
    assert not uncertainty[:, :, 0][0].any()
    np.testing.assert_array_equal(uncertainty[:, :, 1], drawn[:, :, 1])
    assert uncertainty.described()["mean_floor_hu"] == 2.0


@pytest.mark.parametrize("strength", [1.0, 0.8, 0.5, 0.0])
def test_the_truth_of_a_gaussian_toy_lies_within_the_deviation_at_any_strength(strength):
    """Clean tissue N(40, 20^2), noise N(0, 40^2) in one slice and less in another: the posterior is known exactly."""
    rng = np.random.default_rng(0)
    clean, noise_hu = rng.normal(40, 20, (96, 96, 2)), np.array([40.0, 15.0])
    poor = (clean + noise_hu * rng.normal(size=clean.shape)).astype(np.float32)
    kept = 20**2 / (20**2 + noise_hu**2)
    change = ((kept - 1) * (poor - 40)).astype(np.float32)
    deviation = np.broadcast_to(20 * np.sqrt(1 - kept), clean.shape).astype(np.float32).copy()
    result = RestoredSlices(NiftiSource(poor, np.eye(4)), change, strength=strength)
    options = {"calibration": Calibration(), "noise_hu": noise_hu, "samples": 1000, "strength": strength}
    said = uncertainty_of(deviation, result.difference, **options)
    for k in range(2):
        error = np.abs(result[:, :, k] - clean[:, :, k])
        assert said[:, :, k].mean() == pytest.approx(np.sqrt((error**2).mean()), rel=0.02)
        assert (error < said[:, :, k]).mean() == pytest.approx(0.683, abs=0.015)


def test_values_beyond_16_bits_are_held_at_the_top(tmp_path, derived):
    large = np.full((64, 64, 5), 5000.0, np.float32)
    image = pydicom.dcmread(write_parametric_map(tmp_path, Uncertainty(large, scale=1), derived, now=NOW))
    assert (image.pixel_array == 65535).all()


@pytest.mark.skipif(not DCIODVFY.exists(), reason="dicom3tools is not installed")
def test_the_reference_checker_finds_no_error(tmp_path, derived):
    path = write_parametric_map(tmp_path, Uncertainty(deviation(), scale=1), derived, now=NOW)
    done = subprocess.run([str(DCIODVFY), "-new", str(path)], capture_output=True, text=True, check=False)
    errors = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]
    assert errors == []


def test_the_summary_says_how_large_and_whether_calibrated():
    said = Uncertainty(np.full((4, 4, 2), 3.0, np.float32), scale=2.0, calibrated=True).described()
    assert (said["mean_hu"], said["scale"], said["calibrated"]) == (6.0, 2.0, True)
    assert Uncertainty(np.zeros((4, 4, 2), np.float32), scale=1.0).described()["mean_hu"] == 0
