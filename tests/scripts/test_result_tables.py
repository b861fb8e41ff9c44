"""What the model card shows is what was measured."""

import json
from pathlib import Path

import pytest
from script_modules import load_script

ROOT = Path(__file__).resolve().parents[2]
CARD = ROOT / "models" / "README.md"


@pytest.fixture(scope="module")
def script():
    return load_script("result_tables")


def metrics(**values):
    rows = [{"series": s, "method": m, "rmse_hu_body": v} for m, by in values.items() for s, v in by.items()]
    return {"rows": rows}


def test_methods_are_rows_and_series_columns(script):
    shown = script.table(metrics(input={"b": 2.0, "a": 4.0}, ours={"b": 1.0, "a": 1.5}), "rmse_hu_body", {"a": "A"})
    assert shown.splitlines()[2:] == [
        "| method | A | b | mean |",
        "|---|--:|--:|--:|",
        "| input | 4.00 | 2.00 | 3.00 |",
        "| ours | 1.50 | 1.00 | 1.25 |",
    ]


def test_what_is_missing_is_a_dash_and_has_no_mean(script):
    shown = script.table(
        metrics(input={"a": 4.0, "b": 2.0}, ours={"a": 1.0, "b": None}, other={"a": None}), "rmse_hu_body"
    )
    assert shown.splitlines()[-1] == "| ours | 1.00 | - | - |"  # the last row has no value at all and is left out


@pytest.mark.parametrize("dose", ["tenth", "half"])
def test_the_card_shows_the_kept_evaluations_of_other_doses(script, dose):
    kept = json.loads((ROOT / "docs" / "results" / f"{dose}_dose.json").read_text())
    assert script.table(kept, "rmse_hu_body") in CARD.read_text()


def test_the_card_shows_the_kept_evaluation_of_the_weights_beside_it(script):
    kept = json.loads((ROOT / "docs" / "results" / "quarter_dose.json").read_text())
    text = CARD.read_text()
    for key in script.measured(kept):
        assert script.table(kept, key) in text, key
    assert script.phantom(kept) in text
    assert kept["weights_sha256"] == json.loads((ROOT / "models" / "model.json").read_text())["sha256"]
