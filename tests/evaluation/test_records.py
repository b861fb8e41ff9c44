"""Finished series come back exactly, and only for the same settings."""

import math

import numpy as np
import pytest

from bundle.evaluation.measures import METRICS, SLICE_METRICS
from bundle.evaluation.records import FOLDER, Records
from bundle.evaluation.tables import Row

SLICES = {name: np.array([1 / 3, math.inf, math.nan]) for name in SLICE_METRICS}
ROW = Row.of("key", "bm3d", "not trained on", "baseline", SLICES, {"noise_hu": 2 / 7})


def test_rows_come_back_exactly(tmp_path):
    records = Records(tmp_path, {"dose": 0.25})
    assert records.load("key") is None
    records.save("key", [ROW], {"vif": "too small"}, {"redcnn": "no weights"})
    rows, problems, missing = Records(tmp_path, {"dose": 0.25}).load("key")
    assert problems == {"vif": "too small"} and missing == {"redcnn": "no weights"}
    (row,) = rows
    assert (row.series, row.method, row.kind, row.trained_on) == ("key", "bm3d", "baseline", "not trained on")
    for name in METRICS:
        np.testing.assert_equal(row.values[name], ROW.values[name])
    for name in SLICE_METRICS:
        np.testing.assert_array_equal(row.slices[name], SLICES[name])


def test_other_settings_and_damage_start_again(tmp_path):
    Records(tmp_path, {"dose": 0.25}).save("key", [ROW], {}, {})
    assert Records(tmp_path, {"dose": 0.5}).load("key") is None
    (tmp_path / FOLDER / "key.json").write_text("{")
    assert Records(tmp_path, {"dose": 0.25}).load("key") is None


@pytest.mark.parametrize("content", ["[]", '{"settings": 1}'])
def test_foreign_files_count_for_nothing(tmp_path, content):
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "key.json").write_text(content)
    assert Records(tmp_path, {}).load("key") is None
