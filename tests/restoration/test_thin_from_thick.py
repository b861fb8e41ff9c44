"""--slice_spacing_mm through the whole workflow: what is written lies on the thin grid and says so."""

import json

import nibabel
import numpy as np
import pydicom
import pytest
from phantom_series import phantom_hu, write_phantom_series
from tiny_workflows import run_tiny, write_tiny_weights

from bundle.configuration import exit_code
from bundle.dicom.index import read_volume
from bundle.dicom.thin_slices import ThinSlices
from bundle.errors import ExitCode, find_bundle_error
from bundle.files import file_digest
from bundle.restoration.api import load_restorer

SPACING = (0.8, 0.8, 5.0)
THIN = ThinSlices(slice_spacing_mm=2.0)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_tiny_weights(tmp_path_factory.mktemp("weights") / "model.pt", part="denoiser", scale=0.05)


def card(weights, task):
    weights.with_suffix(".json").write_text(json.dumps({"schema": 1, "task": task, "sha256": file_digest(weights)}))


def run(tmp_path, weights, **options):
    options = {"output_dir": tmp_path / "out", "slice_spacing_mm": 2.0, **options}
    run_tiny("inference.yaml", "inference", dataset_dir=tmp_path / "in", weights=weights, **options)
    (folder,) = (path.parent for path in options["output_dir"].glob("*/summary.json"))
    return folder, json.loads((folder / "summary.json").read_text())


def test_everything_that_is_written_lies_on_the_thin_grid(tmp_path, weights):
    write_phantom_series(tmp_path / "in", slices=4, spacing=SPACING)
    card(weights, "thin")
    folder, summary = run(tmp_path, weights, steps=2, num_samples=2, save_nifti=True, report=True)
    expected = THIN.volume(read_volume(str(tmp_path / "in")))
    restored = read_volume(str(folder / "dicom"))
    assert restored.shape == expected.shape == (64, 64, 8) and summary["shape"] == [64, 64, 8]
    np.testing.assert_allclose(restored.affine, expected.affine, atol=1e-6)
    for name in ("volume.nii.gz", "uncertainty/deviation.nii.gz"):
        image = nibabel.load(folder / name)
        assert image.shape == expected.shape
        np.testing.assert_allclose(image.affine, expected.affine_ras, atol=1e-4)
    frames = pydicom.dcmread(folder / "uncertainty" / "deviation.dcm")
    places = [f.PlanePositionSequence[0].ImagePositionPatient[2] for f in frames.PerFrameFunctionalGroupsSequence]
    assert sorted(map(float, places)) == [float(h.ImagePositionPatient[2]) for h in restored.headers]
    assert summary["interpolated_slices"] == [1, 2, 3, 4, 6, 7] and summary["settings"]["slice_spacing_mm"] == 2.0
    header = restored.headers[1]
    assert header.SliceThickness == 2 and header.SeriesDescription.endswith("enhanced 2.0 mm")
    assert header.DerivationDescription.startswith("Thin slices by a latent diffusion model")
    assert not np.array_equal(restored.array, expected.array)
    assert (folder / "report.html").is_file()


def test_without_strength_it_is_the_interpolation(tmp_path, weights):
    write_phantom_series(tmp_path / "in", slices=4, spacing=SPACING)
    card(weights, "thin")
    folder, _ = run(tmp_path, weights, strength=0.0)
    expected, restored = THIN.volume(read_volume(str(tmp_path / "in"))), read_volume(str(folder / "dicom"))
    np.testing.assert_array_equal(restored.stored, expected.stored)
    assert {float(header.SliceThickness) for header in restored.headers} == {5.0}


def test_nifti_and_the_call_from_python_give_the_same(tmp_path, weights):
    hu, affine = phantom_hu(slices=4), np.diag([-0.8, 0.8, 5.0, 1.0])
    (tmp_path / "in").mkdir()
    image = nibabel.Nifti1Image(hu, affine)
    image.set_sform(affine, code=1)
    nibabel.save(image, tmp_path / "in" / "ct.nii.gz")
    card(weights, "thin")
    folder, _ = run(tmp_path, weights)
    written = nibabel.load(folder / "volume.nii.gz")
    np.testing.assert_allclose(written.affine, np.diag([-0.8, 0.8, 2.0, 1.0]), atol=1e-5)
    restore = load_restorer(
        preset="tiny", device="cpu", mixed_precision="off", weights_file=str(weights), slice_spacing_mm=2.0
    )
    (found,) = restore.folder(tmp_path / "in")
    called = restore(hu, affine)
    for one in (found, called):
        np.testing.assert_allclose(one.restored_hu, np.asarray(written.dataobj), atol=0.02)
        np.testing.assert_allclose(one.affine, written.affine, atol=1e-5)


def test_thick_slices_made_of_the_result_are_the_sources(tmp_path, weights):
    write_phantom_series(tmp_path / "in", slices=6, spacing=SPACING, SliceThickness="5")
    card(weights, "thin")
    thick = read_volume(str(tmp_path / "in")).array[..., 1:-1]  # those at the ends reach beyond the thin slices
    errors, shifts, volumes = {}, {}, {}
    for kept in (True, False):
        options = {"slice_spacing_mm": 1.0, "data_consistency": kept}
        folder, summary = run(tmp_path, weights, output_dir=tmp_path / str(kept), **options)
        volumes[kept] = read_volume(str(folder / "dicom")).array
        again = np.stack([volumes[kept][..., k - 2 : k + 3].mean(axis=-1) for k in range(5, 21, 5)], axis=-1)
        errors[kept], shifts[kept] = np.abs(again - thick)[thick > -500], summary["low_frequency_shift_hu"]
        assert summary["settings"]["data_consistency"] is kept
    # Stored values are whole HU; more is left at the surface: some of the thin slices are air there, which stays.
    assert np.quantile(errors[True], 0.95) < 0.5 < np.quantile(errors[False], 0.95)
    assert shifts[True] < 0.2 * shifts[False]
    options = {"preset": "tiny", "device": "cpu", "mixed_precision": "off", "weights_file": str(weights)}
    (called,) = load_restorer(slice_spacing_mm=1.0, **options).folder(tmp_path / "in")
    np.testing.assert_allclose(
        called.restored_hu, volumes[True], atol=1.1
    )  # half of a HU, and half precision of up to 1000 HU


def test_weights_for_denoising_are_refused_unless_asked_for(tmp_path, weights):
    write_phantom_series(tmp_path / "in", slices=3, spacing=SPACING)
    card(weights, "denoise")
    with pytest.raises(RuntimeError) as raised:
        run(tmp_path, weights)
    assert "these weights are for task 'denoise', not 'thin'" in str(find_bundle_error(raised.value))
    folder, summary = run(tmp_path, weights, task="denoise")
    assert summary["in_domain"] == "no" and "interpolated to thinner" in summary["domain"]["reasons"][0]
    assert "out of domain" in read_volume(str(folder / "dicom")).headers[0].SeriesDescription


def test_weights_for_thin_slices_never_touch_slices_that_stay_as_they_are(tmp_path, weights):
    write_phantom_series(tmp_path / "in", slices=3, spacing=SPACING)
    card(weights, "thin")
    with pytest.raises(RuntimeError) as raised:
        run(tmp_path, weights, slice_spacing_mm=None, task="thin")
    error = find_bundle_error(raised.value)
    assert error.exit_code == ExitCode.USER and "slice_spacing_mm" in str(error)
    assert not (tmp_path / "out").exists()


def test_a_series_that_is_thin_already_fails_alone(tmp_path, weights):
    write_phantom_series(tmp_path / "in" / "thick", slices=3, spacing=SPACING)
    write_phantom_series(tmp_path / "in" / "thin", slices=3, spacing=(0.8, 0.8, 1.0), patient="other")
    card(weights, "thin")
    run(tmp_path, weights)
    content = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert exit_code() == ExitCode.PARTIAL and len(content["series"]) == 1
    assert "more than the 1 mm" in next(iter(content["failed"].values()))
