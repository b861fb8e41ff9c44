import json

import pytest
from training_fixtures import ROOT

from bundle.evaluation.training_record import TrainingRecord, training_file_of


@pytest.mark.parametrize("content", [None, "", "{", "[]x", "[]"])
def test_a_missing_or_broken_training_file_claims_nothing(tmp_path, content):
    path = tmp_path / "data.json"
    if content is not None:
        path.write_text(content)
    assert TrainingRecord(path).of("a") == "training data unknown" == TrainingRecord(None).of("a")


def test_a_series_on_both_sides_was_trained_on(tmp_path):
    path = tmp_path / "data.json"
    path.write_text(json.dumps({"train": [{"series": "a"}], "validation": [{"series": "a"}, {"series": "b"}]}))
    said = {key: TrainingRecord(path).of(key) for key in "abc"}
    assert said == {"a": "also trained on", "b": "validated on during training", "c": "not trained on"}


@pytest.mark.parametrize("weights", sorted((ROOT / "models").glob("*.pt")), ids=lambda path: path.stem)
def test_the_record_of_the_shipped_weights_keeps_the_sides_apart(weights):
    content = json.loads(training_file_of(weights).read_text())
    train, validation = ({entry["series"] for entry in content[side]} for side in ("train", "validation"))
    assert train and validation and not train & validation


def test_a_file_of_weights_has_the_note_of_its_name_or_of_its_training_run(tmp_path):
    (tmp_path / "data.json").write_text("{}")
    assert training_file_of(tmp_path / "model.pt").name == "data.json"
    assert TrainingRecord(training_file_of(tmp_path / "thin.pt")).of("a") == "training data unknown"
    (tmp_path / "thin_data.json").write_text('{"train": [{"series": "a"}]}')
    assert TrainingRecord(training_file_of(tmp_path / "thin.pt")).of("a") == "also trained on"
