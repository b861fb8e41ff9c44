"""The evaluation workflow on real DICOM files."""

import json

import numpy as np
import pytest
from phantom_series import phantom_hu, write_phantom_series
from tiny_workflows import run_tiny, write_tiny_weights

from bundle.errors import BundleError, find_bundle_error
from bundle.evaluation.protocol import measure
from bundle.evaluation.tables import METRICS


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_tiny_weights(tmp_path_factory.mktemp("weights") / "model.pt", part="denoiser", scale=0.02)


def run(dataset_dir, out, weights, **options):
    run_tiny("evaluate.yaml", "evaluation", dataset_dir=dataset_dir, output_dir=out, weights=weights, **options)
    return json.loads((out / "metrics.json").read_text())


def test_measures_of_known_errors():
    target = np.clip(phantom_hu(), -1000, 1000)
    body = target > -500
    same = measure(target, target, body)
    assert same["psnr_1000"] == np.inf and same["ssim_1000"] == pytest.approx(1.0) and same["rmse_hu"] == 0
    shifted = measure(target + 20, target, body)
    assert shifted["rmse_hu"] == pytest.approx(20, abs=1e-3)
    assert shifted["rmse_hu_body"] == pytest.approx(20, abs=1e-3)
    assert np.isnan(measure(target, target, np.zeros_like(body))["rmse_hu_body"])


def test_every_method_is_compared_on_the_same_degraded_series(tmp_path, weights, capsys):
    write_phantom_series(tmp_path / "in", slices=4, size=64)
    content = run(tmp_path / "in", tmp_path / "out", weights, sampled_steps=[3])
    rows = {row["method"]: row for row in content["rows"]}
    assert list(rows) == ["input", "autoencoder", "restored", "no_denoiser", "sample_3_steps"]
    assert rows["input"]["rmse_hu"] > 1, "the series was degraded"
    assert rows["autoencoder"]["rmse_hu"] < 0.1, "an untrained lossless autoencoder carries everything"
    # The refiner starts at zero: without the denoiser the input comes back.
    assert rows["no_denoiser"]["rmse_hu"] == pytest.approx(rows["input"]["rmse_hu"], rel=1e-3)
    assert rows["restored"]["rmse_hu"] != rows["input"]["rmse_hu"]
    assert content["degradation"] == {"kind": "low_dose", "dose": 0.25, "seed": 1000}
    assert (tmp_path / "out" / "metrics.csv").is_file() and list((tmp_path / "out").glob("comparison_*.png"))
    assert set(METRICS) <= set(rows["input"])
    assert "not trained on" in capsys.readouterr().out


def test_the_same_seed_gives_the_same_numbers(tmp_path, weights):
    write_phantom_series(tmp_path / "in", slices=3, size=48)
    first, again, other = (
        run(tmp_path / "in", tmp_path / name, weights, seed=seed)["rows"]
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first == again and first != other


def test_nothing_to_evaluate_is_one_line(tmp_path, weights):
    with pytest.raises(RuntimeError) as raised:
        run(tmp_path / "missing", tmp_path / "out", weights)
    assert isinstance(find_bundle_error(raised.value), BundleError)
