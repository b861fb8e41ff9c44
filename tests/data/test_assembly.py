import json

import nibabel
import numpy as np
import pytest
from hub_files import hub_files
from hub_stub import HubStub
from phantom_series import phantom_hu
from training_fixtures import CountingTransform, write_phantoms

from bundle.data.assembly import TrainingData
from bundle.data.joining import StreamedParts
from bundle.data.splits import OTHER_PATIENTS, SAME_PATIENT
from bundle.errors import BundleError
from bundle.progress import Progress


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    return write_phantoms(tmp_path_factory.mktemp("scans"), patients=3)


def data(scans, folder, *, transform=None, **settings):
    transform = transform or CountingTransform(size=32, slices=12)
    return TrainingData(
        scans,
        transform=transform,
        cache_dir=folder / "cache",
        recipe={},
        **{"num_slices": 4, "realisations": 2, **settings},
    )


def test_nothing_is_read_before_it_is_asked_for(tmp_path):
    data(tmp_path / "missing", tmp_path)
    with pytest.raises(BundleError, match="is not a folder"):
        _ = data(tmp_path / "missing", tmp_path).train


def test_prepared_once_for_both_sides(scans, tmp_path):
    transform = CountingTransform(size=32, slices=12)
    made = data(scans, tmp_path, transform=transform)
    assert len(made.train) + len(made.validation) == 3 and transform.calls == 3
    assert made.split.validation_on == OTHER_PATIENTS


def test_one_series_validates_on_its_own_end(scans, tmp_path):
    made = data(scans, tmp_path, max_samples=1)
    assert made.split.validation_on == SAME_PATIENT
    assert made.train[0].case == made.validation[0].case


def test_a_folder_whose_patients_cannot_be_told_apart_is_refused(tmp_path):
    write_phantoms(tmp_path / "scans", patients=1)
    nibabel.save(nibabel.Nifti1Image(phantom_hu(slices=4, size=16), np.eye(4)), tmp_path / "scans" / "a.nii.gz")
    with pytest.raises(BundleError, match="holds DICOM and NIfTI"):
        _ = data(tmp_path / "scans", tmp_path).train


def test_named_validation_folder(scans, tmp_path):
    made = data(scans, tmp_path, validation_folders=["patient1"])
    assert [part.case.label for part in made.validation] == ["patient1"] and len(made.train) == 2


def test_epoch_covers_the_training_slices_once(scans, tmp_path):
    made = data(scans, tmp_path, validation_folders=["patient1"])
    assert made.patches_per_epoch(16) == 2 * 2 * 3 * 2  # rows, columns, slices, series
    assert made.patches_per_epoch(1000) == 1


def test_summary_tells_what_is_used_for_what_without_names(scans, tmp_path):
    (tmp_path / "broken").mkdir()
    write_phantoms(tmp_path / "scans", patients=2)
    damaged = next((tmp_path / "scans").rglob("*.dcm"))
    damaged.write_bytes(damaged.read_bytes()[:-500])
    made = data(tmp_path / "scans", tmp_path)
    made.write_summary(tmp_path / "data.json")
    text = (tmp_path / "data.json").read_text()
    summary = json.loads(text)
    keys = {entry["series"] for side in ("train", "validation") for entry in summary[side]}
    assert keys == {part.case.key for part in made.train + made.validation}
    assert all(entry["slices"] > 0 for entry in summary["train"] + summary["validation"])
    assert summary["skipped"] and summary["validation_on"]
    assert "phantom-" not in text and str(tmp_path) not in text


def test_progress_is_told(scans, tmp_path):
    told = []
    _ = data(scans, tmp_path, progress=lambda *now: told.append(now)).split
    assert told[-1] == (3, 3)


def test_a_training_that_has_to_prepare_shows_how_far_it_is(scans, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(Progress.__init__.__kwdefaults__, "every_seconds", 0.0)
    _ = data(scans, tmp_path).split
    assert "preparing: 1/3 cases" in capsys.readouterr().err


@pytest.fixture
def hub(monkeypatch):
    stub = HubStub(hub_files(3))
    monkeypatch.setenv("HF_ENDPOINT", stub.url)
    yield stub
    stub.close()


def test_a_stream_prepared_ahead_is_not_fetched_again_and_tells_what_it_uses(hub, tmp_path):
    settings = {"streaming": True, "streaming_validation": 1}
    data("hf://datasets/owner/name", tmp_path, **settings).prepare_all()
    sent = dict(hub.sent)
    made = data("hf://datasets/owner/name", tmp_path, **settings)
    assert isinstance(made.train, StreamedParts) and made.awaited == 0 and dict(hub.sent) == sent
    assert made.split.validation_on == OTHER_PATIENTS
    assert {part.case.key for part in made.split.train} <= {part.case.key for part in made.present.train}
    made.write_summary(tmp_path / "data.json")
    told = json.loads((tmp_path / "data.json").read_text())
    assert told["cases"] == {"used": 3, "skipped": 2} and told["revision"] == "a" * 40
    assert "patient" not in (tmp_path / "data.json").read_text().replace("other patients", "")
    sizes = {path: len(content) for path, content in hub.files.items()}
    of_train = sum(sizes[archive.path] for archive in made.stream.training)
    assert made.patches_per_epoch(4) == max(of_train // (4 * 4 * 4), 1)


def test_a_stream_that_nobody_asked_for_is_ended_without_a_word_to_the_hub(hub, tmp_path):
    made = data("hf://datasets/owner/name", tmp_path, streaming=True)
    made.check()
    made.close()
    assert "stream" not in made.__dict__
    assert data("hf://datasets/owner/name", tmp_path, streaming=True, max_samples=1).stream is None
    assert data(tmp_path, tmp_path, streaming=True).stream is None, "a folder is there"
