import json
from pathlib import Path

import numpy as np
import pytest
import torch
from phantom_series import phantom_hu, write_phantom_series
from tiny_workflows import run_tiny, write_tiny_weights

from bundle.errors import BundleError
from bundle.files import file_digest
from bundle.restoration.api import load_restorer

AFFINE = np.diag([-0.8, -0.8, 2.5, 1.0])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    weights = write_tiny_weights(tmp_path_factory.mktemp("api") / "model.pt", part="denoiser", scale=0.02)
    return {"preset": "tiny", "weights_file": str(weights), "device": "cpu", "mixed_precision": "off"}


def test_an_array_and_a_folder_give_what_the_command_gives(tiny, tmp_path):
    import nibabel

    hu = write_phantom_series(tmp_path / "in", slices=6, size=48, spacing=(0.8, 0.8, 2.5))
    (found,) = load_restorer(**tiny).folder(tmp_path / "in")
    run_tiny(
        "inference.yaml", "inference", dataset_dir=tmp_path / "in", output_dir=tmp_path / "out",
        weights=tiny["weights_file"], save_nifti=True,
    )  # fmt: skip
    (file,) = (tmp_path / "out").glob("*/volume.nii.gz")
    written = nibabel.load(file)
    # On its way to the files the change is held in float16: eleven bits of it.
    difference = np.abs(found.restored_hu - np.asarray(written.dataobj))
    assert (difference <= np.abs(found.restored_hu - hu) * 2**-10 + 1e-3).all()
    np.testing.assert_allclose(found.affine, written.affine, atol=1e-4)
    of_array = load_restorer(**tiny)(hu, found.affine)
    np.testing.assert_array_equal(of_array.restored_hu, found.restored_hu)
    assert found.key == file.parent.name and of_array.uncertainty_hu is None and of_array.calibrated is None
    # The review, too, but for rounding: the noise, which whole numbers decide, is that of the same input.
    summary = json.loads((file.parent / "summary.json").read_text())
    assert found.review == of_array.review and found.review.keys() <= summary.keys()
    for name in ("noise_hu_before", "voxels_beyond_bound", "warnings"):
        assert found.review[name] == summary[name]
    assert found.review["low_frequency_shift_hu"] == pytest.approx(summary["low_frequency_shift_hu"], abs=0.02)
    assert np.abs(found.restored_hu - hu).max() > 1


@pytest.mark.parametrize(("asked", "used"), [(1, 1), (0, 2)])
def test_threads_are_those_that_were_asked_for(tiny, asked, used):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        load_restorer(**tiny, threads=asked)
        found = torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
    assert found == used
    with pytest.raises(BundleError, match="threads"):
        load_restorer(**tiny, threads=-1)


def test_samples_give_an_uncertainty_and_one_load_serves_many(tiny):
    restore = load_restorer(**tiny, steps=2, num_samples=3, tile_size=[32, 32, 4])
    hu = phantom_hu(size=40, slices=5)
    first, again = restore(hu, AFFINE), restore(hu, AFFINE)
    assert first.uncertainty_hu is not None and first.uncertainty_hu.shape == hu.shape
    assert first.calibrated is False  # these weights have no card
    np.testing.assert_array_equal(first.restored_hu, again.restored_hu)
    changed = first.restored_hu != hu
    assert (first.uncertainty_hu[changed] > 0).mean() > 0.99 and (first.uncertainty_hu[~changed] == 0).all()


def test_less_strength_is_less_sure(tiny):
    hu = phantom_hu(size=40, slices=3)
    options = {**tiny, "steps": 2, "num_samples": 2}
    whole, none = (load_restorer(**options, strength=strength)(hu, AFFINE) for strength in (1.0, 0.0))
    touched = whole.uncertainty_hu > 0
    change = whole.restored_hu - hu
    removed = [np.sqrt(np.square(change[..., k][touched[..., k]]).mean()) for k in range(3)]
    expected = np.hypot(whole.uncertainty_hu, removed)
    np.testing.assert_allclose(none.uncertainty_hu[touched], expected[touched], rtol=1e-3)


def test_what_the_command_would_warn_of_is_told(tiny, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("bundle.restoration.review.LOW_FREQUENCY_BOUND_HU", 0.0)
    hu = phantom_hu(size=40, slices=3)
    (warning, *_) = load_restorer(**tiny)(hu, AFFINE).review["warnings"]
    assert "local mean HU moved" in warning and f"array: {warning}" in caplog.messages
    write_phantom_series(tmp_path / "in", slices=3, size=32)
    (found,) = load_restorer(**tiny).folder(tmp_path / "in")
    assert f"series {found.key}: {found.review['warnings'][0]}" in caplog.messages


@pytest.mark.parametrize(("steps", "pixel_mm"), [(2, [0.1, 9.0]), (3, [0.1, 9.0]), (2, [0.1, 0.2])])
def test_whether_the_uncertainty_is_calibrated(tiny, steps, pixel_mm):
    weights = Path(tiny["weights_file"])
    card = {"schema": 1, "sampler": "bridge", "sha256": file_digest(weights), "uncertainty": {"scale": 0.5, "steps": 2}}
    card["domain"] = {"pixel_mm": pixel_mm}
    weights.with_suffix(".json").write_text(json.dumps(card))
    try:
        found = load_restorer(**tiny, steps=steps, num_samples=2)(phantom_hu(size=32, slices=2), AFFINE)
    finally:
        weights.with_suffix(".json").unlink()
    # Samples that the card's numbers were fitted to, of a series like those.
    assert found.calibrated is (steps == 2 and found.domain.inside) and found.domain.inside is (pixel_mm[1] > 1)


def test_strength_zero_is_the_input(tiny):
    hu = phantom_hu(size=40, slices=3)
    np.testing.assert_array_equal(load_restorer(**tiny, strength=0.0)(hu, AFFINE).restored_hu, hu)


def test_a_folder_is_selected_from_and_one_bad_series_stops_nothing(tiny, tmp_path, monkeypatch):
    for name in ("a", "b", "c"):
        write_phantom_series(tmp_path / "in" / name, slices=3, size=32, patient=name, SeriesDescription=f"chest {name}")
    keys = [found.key for found in load_restorer(**tiny).folder(tmp_path / "in")]
    assert len(keys) == 3 and keys == sorted(keys)
    (chosen,) = load_restorer(**tiny, select_description="chest b").folder(tmp_path / "in")
    assert [found.key for found in load_restorer(**tiny, max_samples=2).folder(tmp_path / "in")] == keys[:2]
    with pytest.raises(BundleError, match="no series fits the rules"):
        list(load_restorer(**tiny, select_kernel="nosuch").folder(tmp_path / "in"))
    restore = load_restorer(**tiny)
    load = restore._load

    def broken(data):
        if "/in/b/" in data["image"][0]:
            raise BundleError("slices missing")
        return load(data)

    monkeypatch.setattr(restore, "_load", broken)
    assert [found.key for found in restore.folder(tmp_path / "in")] == [key for key in keys if key != chosen.key]
    assert restore.failed == {chosen.key: "slices missing"}


def test_the_domain_is_told_and_kept(tiny, tmp_path, caplog):
    weights = Path(tiny["weights_file"])
    card = {"schema": 1, "task": "denoise", "sampler": "bridge", "sha256": file_digest(weights)}
    weights.with_suffix(".json").write_text(json.dumps({**card, "domain": {"slice_mm": [0.5, 2.0]}}))
    try:
        write_phantom_series(tmp_path / "in", slices=3, size=32)
        (found,) = load_restorer(**tiny).folder(tmp_path / "in")
        of_array = load_restorer(**tiny)(phantom_hu(size=32, slices=3), AFFINE)
        for domain in (found.domain, of_array.domain):
            assert domain.word == "no" and "slice spacing 2.5 mm is above 2" in domain.said
        for name in (f"series {found.key}", "array"):
            assert f"{name}: outside the weights' domain: slice spacing 2.5 mm is above 2" in caplog.messages
        strict = load_restorer(**tiny, strict_domain=True)
        assert list(strict.folder(tmp_path / "in")) == [] and "outside the weights' domain" in strict.failed[found.key]
        with pytest.raises(BundleError, match="outside the weights' domain"):
            strict(phantom_hu(size=32, slices=3), AFFINE)
    finally:
        weights.with_suffix(".json").unlink()


def test_what_cannot_be_restored(tiny):
    restore = load_restorer(**tiny)
    with pytest.raises(BundleError, match="shape"):
        restore(np.zeros((4, 4)), AFFINE)
    with pytest.raises(BundleError, match="finite"):
        restore(np.full((16, 16, 2), np.nan), AFFINE)
    with pytest.raises(BundleError, match="affine"):
        restore(np.zeros((16, 16, 2)), np.zeros((4, 4)))
    with pytest.raises(BundleError, match=r"unknown option --step \(did you mean --steps\?\)"):
        load_restorer(step=4)
