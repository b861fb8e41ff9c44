"""Tables: every number's range is said, files are whole, nothing is NaN in JSON."""

import csv
import json
import math

import numpy as np
import pytest

from bundle.evaluation.measures import METRICS, SLICE_METRICS
from bundle.evaluation.tables import (
    Row,
    best_baseline,
    mean_rows,
    screen_table,
    significance,
    write_tables,
)


def row(series, method, value, trained_on="not trained on", kind="reference", slices=8):
    values = value + np.linspace(-0.5, 0.5, slices)
    return Row.of(series, method, trained_on, kind, dict.fromkeys(SLICE_METRICS, values), {})


def test_mean_over_series_keeps_the_methods_order():
    rows = [row("a", "input", 1.0), row("a", "restored", 2.0), row("b", "input", 3.0), row("b", "restored", 4.0)]
    means = mean_rows(rows)
    assert [(r.method, r.values["rmse_hu"]) for r in means] == [("input", 2.0), ("restored", 3.0)]
    assert len(means[0].slices["rmse_hu"]) == 16


def test_infinite_psnr_and_empty_bodies_do_not_break_means_or_json(tmp_path):
    rows = [row("a", "input", math.inf), row("b", "input", 40.0), row("a", "restored", math.nan)]
    write_tables(tmp_path, rows, header={}, failed={"c": "too short"})
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert content["schema"] == 2 and content["failed"] == {"c": "too short"}
    assert content["rows"][0]["psnr_1000"] is None
    assert content["mean"][0]["psnr_1000"] == pytest.approx(40) and content["mean"][1]["psnr_1000"] is None
    assert set(content["definitions"]) == set(METRICS)


def test_the_mean_has_the_spread_of_a_series_metric_over_series(tmp_path):
    rows = [
        Row.of(key, "input", "unknown", "reference", {}, {"bias_fat_hu": value}) for key, value in (("a", 1), ("b", 4))
    ]
    write_tables(tmp_path, rows, header={}, failed={})
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert content["mean"][0]["spread"]["bias_fat_hu"] == pytest.approx(np.std([1, 4], ddof=1))
    assert "bias_fat_hu" not in content["rows"][0]["spread"] | content["mean"][0]["worst_slice"]


def test_a_baseline_that_is_missing_on_a_series_is_not_the_best():
    rows = [row("easy", "tv3d", 4.1, kind="baseline")]
    for key, value in (("easy", 3.4), ("hard", 25.0)):
        rows += [row(key, "restored", value, kind="ours"), row(key, "bm3d", value + 1, kind="baseline")]
    best = best_baseline(mean_rows(rows))
    assert best is not None and best.method == "bm3d"


def test_spread_and_worst_slice_know_which_way_is_better(tmp_path):
    write_tables(tmp_path, [row("a", "input", 10.0)], header={}, failed={})
    entry = json.loads((tmp_path / "metrics.json").read_text())["rows"][0]
    assert entry["worst_slice"]["rmse_hu"] == 10.5 and entry["worst_slice"]["psnr_1000"] == 9.5
    assert entry["spread"]["rmse_hu"] == pytest.approx(np.std(np.linspace(-0.5, 0.5, 8), ddof=1))


def test_parameters_are_told_by_series_and_method(tmp_path):
    parameters = {"a": {"gaussian": {"sigma": 0.5}}, "phantom": {"gaussian": {"sigma": 0.4}}}
    write_tables(tmp_path, [row("a", "gaussian", 1.0)], header={}, failed={}, parameters=parameters)
    assert json.loads((tmp_path / "metrics.json").read_text())["parameters"] == parameters


def test_csv_has_every_row_and_every_slice(tmp_path):
    write_tables(tmp_path, [row("a", "input", 1.5), row("a", "restored", 2.5)], header={}, failed={})
    with (tmp_path / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(r["series"], float(r["rmse_hu"])) for r in rows] == [("a", 1.5), ("a", 2.5), ("mean", 1.5), ("mean", 2.5)]
    with (tmp_path / "slices.csv").open() as stream:
        slices = list(csv.DictReader(stream))
    assert len(slices) == 16 and float(slices[0]["rmse_hu"]) == 1.0


def test_ours_is_compared_with_baselines_and_ablations_slice_by_slice():
    rows = [
        row("a", "input", 20.0),
        row("a", "restored", 8.0, kind="ours"),
        row("a", "no_denoiser", 15.0, kind="ours"),
        row("a", "bm3d", 10.0, kind="baseline"),
        row("a", "tv3d", 9.0, kind="baseline"),
    ]
    means = mean_rows(rows)
    assert best_baseline(means).method == "tv3d", "least error"
    assert best_baseline(means, "psnr_1000").method == "bm3d", "highest PSNR"
    found = {(r["metric"], r["against"]): r for r in significance(means)}
    assert {against for _, against in found} == {"no_denoiser", "bm3d", "tv3d"}
    result = found["rmse_hu_body", "tv3d"]
    assert result["best_baseline"] and result["pairs"] == 8 and result["better_share"] == 1
    assert result["mean_difference"] == pytest.approx(-1) and result["p_value"] < 0.01
    assert not found["rmse_hu_body", "bm3d"]["best_baseline"]
    assert found["psnr_1000", "tv3d"]["better_share"] == 0, "a lower PSNR is worse"
    assert best_baseline(mean_rows(rows[:3])) is None and significance(means[:1]) == []


def test_the_screen_table_fits_80_columns_and_names_ranges_and_training():
    means = mean_rows(
        [
            row("a", "sample_1000_steps", 100.0, "also trained on"),
            row("a", "restored", 9.0, kind="ours"),
            row("a", "bm3d", 9.5, kind="baseline"),
        ]
    )
    text = screen_table(means, series=1, missing={"redcnn": "no weights " * 20})
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "[-1000, 1000] HU" in text and "2000 HU" in text and "also trained on" in text
    assert "redcnn: no weights" in text and "restored against bm3d: -0.50 HU" in text
