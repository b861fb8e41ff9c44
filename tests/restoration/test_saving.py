"""What a run leaves per series: uncertainty, NIfTI, domain and review; laws on the workflow itself."""

import json

import nibabel
import numpy as np
import pydicom
import pytest
from phantom_series import phantom_hu, write_phantom_series
from tiny_workflows import run_tiny, write_tiny_weights

from bundle.configuration import exit_code
from bundle.dicom.index import read_volume
from bundle.errors import BundleError, ExitCode, find_bundle_error
from bundle.files import file_digest
from bundle.metrics.noise import noise_level
from bundle.restoration.saving import SaveRestored


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "weights" / "model.pt"
    path.parent.mkdir()
    return write_tiny_weights(path, part="denoiser", scale=0.05)


def card(weights, **content):
    base = {"schema": 1, "task": "denoise", "sampler": "bridge", "sha256": file_digest(weights)}
    weights.with_suffix(".json").write_text(json.dumps({**base, **content}))


def run(tmp_path, weights, **options):
    options = {"output_dir": tmp_path / "out", **options}
    run_tiny("inference.yaml", "inference", dataset_dir=tmp_path / "in", weights=weights, **options)
    (folder,) = (path.parent for path in options["output_dir"].glob("*/summary.json"))
    return folder, json.loads((folder / "summary.json").read_text())


def test_samples_leave_their_mean_and_a_calibrated_deviation(tmp_path, weights):
    write_phantom_series(tmp_path / "in", slices=4)
    card(weights, uncertainty={"scale": 2.0, "steps": 2})
    folder, summary = run(tmp_path, weights, steps=2, num_samples=3, save_nifti=True)
    deviation = nibabel.load(folder / "uncertainty" / "deviation.nii.gz")
    values = np.asarray(deviation.dataobj)
    restored = read_volume(str(folder / "dicom"))
    assert values.shape == restored.shape and np.allclose(deviation.affine, restored.affine_ras, atol=1e-4)
    source = read_volume(str(tmp_path / "in"))
    assert values.mean() > 0 and not values[0, -1].any(), "none in the air"
    assert summary["uncertainty"]["calibrated"] and summary["uncertainty"]["scale"] == pytest.approx(2.3094)
    image = pydicom.dcmread(folder / "uncertainty" / "deviation.dcm")
    assert image.NumberOfFrames == 4 and image.SOPClassUID.name.startswith("Parametric Map")
    float_restored = np.asarray(nibabel.load(folder / "volume.nii.gz").dataobj)
    assert np.abs(np.rint(float_restored) - restored.array).max() <= 1
    assert not np.array_equal(restored.array, source.array)


@pytest.mark.parametrize("strength", [0.5, 0.0])
def test_what_a_strength_leaves_out_is_part_of_the_deviation(tmp_path, weights, strength):
    write_phantom_series(tmp_path / "in", slices=3)
    maps = []
    for s in (1.0, strength):
        out = tmp_path / f"out{s}"
        folder, _ = run(tmp_path, weights, steps=2, num_samples=2, strength=s, save_nifti=True, output_dir=out)
        names = ("volume.nii.gz", "uncertainty/deviation.nii.gz")
        maps.append([np.asarray(nibabel.load(folder / name).dataobj) for name in names])
    (whole, deviation), (_, found) = maps
    change = whole - read_volume(str(tmp_path / "in")).array
    removed = [np.sqrt(np.square(change[..., k][change[..., k] != 0]).mean()) for k in range(3)]
    touched = deviation > 0
    expected = np.hypot(deviation, (1 - strength) * np.array(removed))
    np.testing.assert_allclose(found[touched], expected[touched], rtol=2e-3)
    assert not found[~touched].any() and min(removed) > 1


def test_samples_of_other_steps_or_series_than_the_cards_are_not_said_to_be_calibrated(tmp_path, weights):
    write_phantom_series(tmp_path / "in", slices=2)
    for steps, slice_mm in ((2, [0.1, 9]), (3, [0.1, 9]), (3, [8, 9])):
        card(weights, uncertainty={"scale": 2.0, "steps": 3}, domain={"slice_mm": slice_mm})
        out = tmp_path / f"out{steps}{slice_mm[0]}"
        folder, summary = run(tmp_path, weights, steps=steps, num_samples=2, output_dir=out)
        said = pydicom.dcmread(folder / "uncertainty" / "deviation.dcm", stop_before_pixels=True).ContentDescription
        calibrated = steps == 3 and slice_mm[0] < 8
        assert summary["in_domain"] == ("yes" if slice_mm[0] < 8 else "no")
        assert summary["uncertainty"]["calibrated"] == calibrated
        assert said.startswith("calibrated") == calibrated


def test_the_floor_of_the_card_follows_the_noise_of_slices(tmp_path, weights):
    write_phantom_series(tmp_path / "in", slices=3)
    maps = []
    for number, floor in enumerate((0.0, 2.0)):
        card(weights, uncertainty={"scale": 1.0, "floor": floor, "constant_hu": 1.5 * floor})
        out = tmp_path / f"out{number}"
        folder, summary = run(tmp_path, weights, steps=2, num_samples=2, strength=0.5, output_dir=out)
        maps.append(np.asarray(nibabel.load(folder / "uncertainty" / "deviation.nii.gz").dataobj))
    noise = noise_level(read_volume(str(tmp_path / "in")).array)
    touched = maps[0] > 0
    of_mean = np.sqrt(1 + 1 / 2)
    expected = np.hypot(maps[0], np.broadcast_to(of_mean * np.hypot(2.0 * noise, 3.0), maps[0].shape))
    np.testing.assert_allclose(maps[1][touched], expected[touched], rtol=1e-4)
    assert not maps[1][~touched].any() and summary["uncertainty"]["mean_floor_hu"] > 0


def test_the_residual_of_the_card_reaches_the_sampler(tmp_path, weights):
    write_phantom_series(tmp_path / "in", slices=3)
    means = []
    for number, residual in enumerate((0.01, 1.0)):
        card(weights, uncertainty={"residual_std": [residual] * 16})
        out = tmp_path / f"out{number}"
        _, summary = run(tmp_path, weights, steps=2, num_samples=2, output_dir=out)
        means.append(summary["uncertainty"]["mean_hu"])
    assert means[1] > 1.2 * means[0]


def test_nifti_in_nifti_out(tmp_path, weights):
    hu, affine = phantom_hu(slices=4), np.diag([-0.8, 0.8, -2.5, 1.0])
    (tmp_path / "in").mkdir()
    image = nibabel.Nifti1Image(hu, affine)
    image.set_sform(affine, code=1)
    nibabel.save(image, tmp_path / "in" / "ct.nii.gz")
    folder, summary = run(tmp_path, weights)
    restored = nibabel.load(folder / "volume.nii.gz")
    values = np.asarray(restored.dataobj)
    np.testing.assert_allclose(restored.affine, affine, atol=1e-5)
    assert not (folder / "dicom").exists() and summary["changed_fraction"] > 0.1
    assert np.array_equal(values[0, -1], hu[0, -1]) and not np.array_equal(values, hu)
    folder, _ = run(tmp_path, weights, strength=0.0, output_dir=tmp_path / "none")
    assert np.array_equal(np.asarray(nibabel.load(folder / "volume.nii.gz").dataobj), hu)


def test_outside_the_domain_is_said_everywhere_and_goes_on(tmp_path, weights, capsys):
    write_phantom_series(tmp_path / "in", slices=3, SeriesDescription="long " * 12 + "yes")
    card(weights, domain={"noise_hu": [1.0, 2.0]})
    folder, summary = run(tmp_path, weights, steps=2, num_samples=2)
    assert summary["in_domain"] == "no" and "noise" in summary["domain"]["reasons"][0]
    header = pydicom.dcmread(next((folder / "dicom").iterdir()), stop_before_pixels=True)
    assert header.SeriesDescription.startswith("long") and header.SeriesDescription.endswith("enhanced (out of domain)")
    deviation = pydicom.dcmread(folder / "uncertainty" / "deviation.dcm", stop_before_pixels=True)
    assert deviation.SeriesDescription.startswith("long long")
    assert deviation.SeriesDescription.endswith("enhanced (out of domain) uncertainty")
    assert "domain: no (noise" in header.DerivationDescription
    assert "outside the weights' domain" in "".join(capsys.readouterr())
    assert exit_code() == ExitCode.DONE


def test_inside_the_domain_is_said(tmp_path, weights):
    write_phantom_series(tmp_path / "in", slices=3)
    card(weights, domain={"noise_hu": [1.0, 100.0]})
    folder, summary = run(tmp_path, weights)
    header = pydicom.dcmread(next((folder / "dicom").iterdir()), stop_before_pixels=True)
    assert summary["in_domain"] == "yes" and "domain: yes" in header.DerivationDescription
    assert header.SeriesDescription.endswith("enhanced")


def test_a_strict_domain_refuses_the_series_alone(tmp_path, weights):
    write_phantom_series(tmp_path / "in", slices=3)
    card(weights, domain={"noise_hu": [1.0, 2.0]})
    run_tiny(
        "inference.yaml",
        "inference",
        dataset_dir=tmp_path / "in",
        output_dir=tmp_path / "out",
        weights=weights,
        strict_domain=True,
    )
    assert exit_code() == ExitCode.PARTIAL
    content = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert "outside the weights' domain" in next(iter(content["failed"].values()))
    assert not list((tmp_path / "out").glob("*/dicom"))


def test_weights_of_another_process_are_refused(tmp_path, weights):
    write_phantom_series(tmp_path / "in", slices=3)
    card(weights)
    with pytest.raises(RuntimeError) as raised:
        run(tmp_path, weights, sampler="ddim")
    assert "trained under sampler 'bridge'" in str(find_bundle_error(raised.value))


@pytest.mark.parametrize("strength", [-0.1, 1.1])
def test_a_strength_out_of_range_is_refused(strength):
    with pytest.raises(BundleError, match="strength"):
        SaveRestored(None, strength=strength, description="")
