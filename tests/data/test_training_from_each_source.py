"""A training starts from each kind of data: the whole way from files to weights, with the smallest networks."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hub_files import hub_files
from hub_stub import HubStub
from phantom_series import phantom_hu, write_phantom_series
from training_fixtures import make_workflow, write_phantoms

from bundle.degrade.slabs import ThickSlices
from bundle.dicom.reader import LoadSeriesd

CT = Path(__file__).resolve().parents[3] / "shared" / "data" / "ct"
real_ct = pytest.mark.skipif(not CT.is_dir(), reason="no real CT here")
pytestmark = pytest.mark.full
SHORT = {
    "autoencoder_epochs": 0,
    "phase1_epochs": 1,
    "num_epochs": 2,
    "steps_per_epoch": 2,
    "val_interval": 2,
    "validation_slices": 2,
}


def train(dataset_dir, tmp_path, **overrides):
    """Train and return what the run says about its data, and a patch of it."""
    output = tmp_path / "run"
    workflow, trainer = make_workflow(dataset_dir, output, **{**SHORT, **overrides})
    before = {name: value.clone() for name, value in trainer.restorer.state_dict().items()}
    workflow.run()
    assert (output / "model.pt").is_file() and trainer.state.iteration == 4
    assert np.isfinite(trainer.state.output["loss"])
    assert any(not value.equal(before[name]) for name, value in trainer.restorer.state_dict().items())
    return json.loads((output / "data.json").read_text()), trainer.dataset


def write_nifti(folder, *, count=2, slices=12):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        image = nibabel.Nifti1Image(phantom_hu(slices=slices, seed=number), np.diag([0.8, 0.8, 2.5, 1]))
        nibabel.save(image, folder / f"case{number}.nii.gz")
    return folder


def write_thick_thin(folder, thin_hu, *, patient, spacing, thickness):
    """A study as DICOM: the thin series, and the thick one that averages it."""
    weights = ThickSlices(thickness_mm=thickness).slab_weights(thin_hu.shape[2], spacing[2])
    thick_hu = np.rint(thin_hu @ weights.T).astype(np.float32)
    first = 112.25
    for name, hu, step, start in (
        ("thin", thin_hu, spacing[2], first),
        ("thick", thick_hu, thickness, first + (thickness - spacing[2]) / 2),
    ):
        write_phantom_series(
            folder / name,
            patient=patient,
            series=name,
            hu=hu,
            spacing=(*spacing[:2], step),
            ImagePositionPatient=lambda k, start=start, step=step: ["-20", "-30.5", f"{start + k * step:.6g}"],
        )


def test_a_dicom_folder(tmp_path):
    told, _ = train(write_phantoms(tmp_path / "scans"), tmp_path)
    assert told["cases"] == {"used": 2, "skipped": 0}


def test_a_nifti_folder(tmp_path):
    told, _ = train(write_nifti(tmp_path / "scans"), tmp_path)
    assert told["cases"]["used"] == 2


def test_a_datalist_with_folds_of_pairs(tmp_path):
    write_phantoms(tmp_path / "full")
    entries = []
    for number in range(2):
        hu = phantom_hu(slices=12, seed=number)
        noisy = np.rint(hu + np.random.default_rng(number).normal(0, 30, hu.shape)).clip(-1024, 3071)
        write_phantom_series(
            tmp_path / "low" / f"p{number}", patient=f"phantom-{number}", series="low", hu=noisy.astype(np.float32)
        )
        entries.append({"image": f"low/p{number}", "label": f"full/patient{number}", "fold": number})
    path = tmp_path / "datalist.json"
    path.write_text(json.dumps({"training": entries}))
    told, dataset = train(path, tmp_path, validation_fold=1, noise_realisations=0)
    assert told["cases"]["used"] == 2 and len(told["validation"]) == 1
    item, told = dataset[0], dataset.metadata(0)
    assert told["degradation"] == "pair"
    assert 20 < float((item["image"] - item["label"]).std()) / told["contrast"] < 40


def test_thick_slices_simulated_from_thin_ones(tmp_path):
    _, dataset = train(
        write_phantoms(tmp_path / "scans"), tmp_path, degradation="thick_slices", slice_thickness_mm=[7.5]
    )
    assert dataset.metadata(0)["degradation"][0]["thickness_mm"] == 7.5 or dataset.metadata(1)["degradation"]


@real_ct
def test_a_thick_and_thin_study_of_a_real_chest(tmp_path):
    """1 mm thin and 5 mm thick, as DICOM, the thick one averaged from the thin one."""
    image = LoadSeriesd("image")({"image": str(CT / "lidc_0314")})["image"]
    hu = np.asarray(image)[0][128:384, 128:384]
    write_thick_thin(tmp_path / "study", hu, patient="lidc", spacing=(0.7812, 0.7812, 1.0), thickness=5.0)
    told, dataset = train(tmp_path / "study", tmp_path, pairs="thick_thin")
    assert told["cases"] == {"used": 1, "skipped": 0} and told["validation_on"] == "same patient"
    case = dataset.parts[0].case
    assert case.paired and case.spacing_mm[2] == pytest.approx(1.0)
    # The degraded side is what the simulation would have made of the thin series.
    expected = ThickSlices(thickness_mm=5.0).apply(hu, step_mm=1.0)[:, :, 2 : 2 + case.shape[2]]
    stored = np.sort(np.asarray(case.poor_hu, np.float32), axis=None)
    np.testing.assert_allclose(stored, np.sort(expected, axis=None), atol=0.6)


@real_ct
def test_a_real_kernel_pair(tmp_path):
    (tmp_path / "scans").mkdir()
    for name in ("lungdx_a0002", "lungdx_a0002_b70f"):
        (tmp_path / "scans" / name).symlink_to(CT / name)
    told, dataset = train(tmp_path / "scans", tmp_path, pairs="*_b70f -> *")
    assert told["cases"] == {"used": 1, "skipped": 0}
    case = dataset.parts[0].case
    assert case.paired and np.median(case.poor_noise_hu) > 2 * np.median(case.noise_hu)


def test_the_hub(tmp_path, monkeypatch):
    files = {name: data for name, data in hub_files(2, slices=12, size=64).items() if "corrupt" not in name}
    stub = HubStub(files, token="hf_token")
    stub.faults["APE/patient0.zip"] = ["503", "cut"]
    monkeypatch.setenv("HF_ENDPOINT", stub.url)
    monkeypatch.setenv("HF_TOKEN", "hf_token")
    settings = {**SHORT, "streaming": False}
    try:
        told, _ = train("hf://datasets/owner/name", tmp_path, **settings)
        sent = sum(stub.sent.values())
        again, _ = make_workflow("hf://datasets/owner/name", tmp_path / "run", **settings)
        assert len(again.parser.get_parsed_content("training_data").train) == 1
        assert sum(stub.sent.values()) == sent, "what is prepared is not fetched again"
    finally:
        stub.close()
    assert told["cases"] == {"used": 2, "skipped": 1} and told["revision"] == "a" * 40
    assert list(told["skipped"].values()) == ["archive is empty"] and told["validation_on"] == "other patients"
