"""The shipped weights on patients that they were not trained on: what the model card says of them, as laws."""

import json

import pytest
from tiny_workflows import run_tiny
from training_fixtures import ROOT

from bundle.dicom.index import read_volume
from bundle.metrics.noise import noise_level

CT = ROOT.parent / "shared" / "data" / "ct"
SERIES = ["crlm_1004", "rider_pilot_0117"]

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(not (CT / SERIES[0]).is_dir(), reason="the real series are not here"),
    pytest.mark.parametrize("series", SERIES),
]


def evaluate(series, out, **options):
    """Rows of an evaluation of four slices, by method."""
    shipped = {"preset": "small", "mixed_precision": "auto", "weights": ROOT / "models" / "model.pt"}
    quick = {"max_slices": 4, "phantom": False, "threads": 1}
    run_tiny("evaluate.yaml", "evaluation", dataset_dir=CT / series, output_dir=out, **shipped, **quick, **options)
    return {row["method"]: row for row in json.loads((out / "metrics.json").read_text())["rows"]}


def test_a_quarter_dose_is_restored_by_the_diffusion(series, tmp_path):
    rows = evaluate(series, tmp_path, classical=["tv3d", "nlm3d"], strengths=[0.25, 0.5, 0.75], averaged_samples=4)
    errors = {method: row["rmse_hu_body"] for method, row in rows.items()}
    assert errors["restored"] < 0.95 * min(errors["tv3d"], errors["nlm3d"])
    assert rows["restored"]["psnr_1000"] > rows["no_denoiser"]["psnr_1000"] + 0.5, "the diffusion does the work"
    by_strength = [errors[name] for name in ("input", "strength_0.25", "strength_0.5", "strength_0.75", "restored")]
    assert by_strength == sorted(by_strength, reverse=True)
    noise = [rows[name]["noise_hu"] for name in ("input", "strength_0.25", "strength_0.5", "strength_0.75", "restored")]
    assert noise == sorted(noise, reverse=True)
    assert all(abs(rows["restored"][f"bias_{name}_hu"] or 0) < 1 for name in ("air", "lung", "fat", "soft", "bone"))
    assert rows["mean_of_4_samples"]["coverage_1_percent"] == pytest.approx(68.3, abs=5)
    assert rows["mean_of_4_samples"]["coverage_2_percent"] == pytest.approx(95.4, abs=3)


def test_a_good_scan_changes_by_less_than_its_noise(series, tmp_path):
    rows = evaluate(series, tmp_path, degradation="none", classical=[], methods=["restored"])
    noise = float(noise_level(read_volume(str(CT / series)).array).mean())
    assert 0 < rows["restored"]["rmse_hu_body"] < 0.2 * noise
