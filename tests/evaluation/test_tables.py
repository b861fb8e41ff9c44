"""Tables: every number's range is said, files are whole, nothing is NaN in JSON."""

import csv
import json
import math

import pytest

from bundle.evaluation.tables import METRICS, Row, mean_rows, read_training_keys, screen_table, write_tables


def row(series, method, value, trained_on="not trained on"):
    return Row(series, method, trained_on, dict.fromkeys(METRICS, value))


def test_mean_over_series_keeps_the_methods_order():
    rows = [row("a", "input", 1.0), row("a", "restored", 2.0), row("b", "input", 3.0), row("b", "restored", 4.0)]
    assert [(r.method, r.values["rmse_hu"]) for r in mean_rows(rows)] == [("input", 2.0), ("restored", 3.0)]


def test_infinite_psnr_and_empty_bodies_do_not_break_means_or_json(tmp_path):
    rows = [row("a", "input", math.inf), row("b", "input", 40.0), row("a", "restored", math.nan)]
    write_tables(tmp_path, rows, header={}, failed={"c": "too short"})
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert content["schema"] == 1 and content["failed"] == {"c": "too short"}
    assert content["rows"][0]["psnr_1000"] is None
    assert content["mean"][0]["psnr_1000"] == 40.0 and content["mean"][1]["psnr_1000"] is None
    assert set(content["definitions"]) == set(METRICS)


def test_csv_has_every_row(tmp_path):
    write_tables(tmp_path, [row("a", "input", 1.5), row("a", "restored", 2.5)], header={}, failed={})
    with (tmp_path / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [float(r["rmse_hu"]) for r in rows] == [1.5, 2.5]


def test_the_screen_table_fits_80_columns_and_names_ranges_and_training():
    text = screen_table(mean_rows([row("a", "sample_1000_steps", 100.0, "also trained on")]), series=1)
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "[-1000, 1000] HU" in text and "2000 HU" in text and "also trained on" in text


@pytest.mark.parametrize("content", [None, "", "{", "[]x"])
def test_a_missing_or_broken_training_file_says_nothing(tmp_path, content):
    path = tmp_path / "data.json"
    if content is not None:
        path.write_text(content)
    assert read_training_keys(path) == {} == read_training_keys(None)


def test_a_series_on_both_sides_was_trained_on(tmp_path):
    path = tmp_path / "data.json"
    path.write_text(json.dumps({"train": [{"series": "a"}], "validation": [{"series": "a"}, {"series": "b"}]}))
    assert read_training_keys(path) == {"a": "also trained on", "b": "validated on during training"}
