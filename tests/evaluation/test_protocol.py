"""The evaluation workflow on real DICOM files."""

import functools
import json
import sys
import types

import numpy as np
import pytest
from phantom_series import phantom_hu, write_phantom_series
from tiny_workflows import ROOT, run_tiny, write_tiny_weights

from bundle.configuration import exit_code
from bundle.errors import BundleError, ExitCode, InterruptedRun, find_bundle_error
from bundle.evaluation import classical, phantom, protocol
from bundle.evaluation.measures import METRICS
from bundle.evaluation.methods import Method
from bundle.evaluation.protocol import ComparisonEvaluator
from bundle.evaluation.tuning import FILE
from bundle.files import file_digest
from bundle.overrides import load_config

FAST = {"classical": ["gaussian", "tv3d"], "phantom": False}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_tiny_weights(tmp_path_factory.mktemp("weights") / "model.pt", part="denoiser", scale=0.02)


def run(dataset_dir, out, weights, *, config="evaluate.yaml", **options):
    options = {**FAST, **options}
    run_tiny(config, "evaluation", dataset_dir=dataset_dir, output_dir=out, weights=weights, **options)
    return json.loads((out / "metrics.json").read_text())


def test_every_method_is_compared_on_the_same_degraded_series(tmp_path, weights, capsys):
    write_phantom_series(tmp_path / "in", slices=6, size=64)
    content = run(tmp_path / "in", tmp_path / "out", weights, sampled_steps=[3], averaged_samples=2, max_slices=4)
    rows = {row["method"]: row for row in content["rows"]}
    ours = ["restored", "sample_3_steps", "mean_of_2_samples", "no_denoiser", "no_refiner"]
    assert list(rows) == ["input", "floor", "target", "autoencoder", *ours, "gaussian", "tv3d"]
    assert rows["input"]["rmse_hu"] > 1, "the series was degraded"
    assert rows["autoencoder"]["rmse_hu"] < 0.1, "an untrained lossless autoencoder carries everything"
    # The refiner starts at zero: without the denoiser the input comes back.
    assert rows["no_denoiser"]["rmse_hu"] == pytest.approx(rows["input"]["rmse_hu"], rel=1e-3)
    assert rows["no_refiner"]["rmse_hu"] == pytest.approx(rows["restored"]["rmse_hu"], rel=1e-6)
    assert rows["restored"]["rmse_hu"] != rows["input"]["rmse_hu"]
    said = content["degradation"]
    assert said["kind"] == "low_dose" and said["dose"] == 0.25 and said["seed"] == 1000 and said["calibrate_noise"]
    assert set(content["missing"]) == {"redcnn", "unet3d"} and "no weights" in content["missing"]["redcnn"]
    assert set(METRICS) <= set(rows["input"]) and set(rows) <= set(content["methods"])
    assert {result["against"] for result in content["significance"]} >= {"gaussian", "tv3d", "no_denoiser"}
    assert all(result["pairs"] <= 4 for result in content["significance"])
    names = {path.name.split("_")[0] for path in (tmp_path / "out").iterdir()}
    assert {"metrics.json", "metrics.csv", "slices.csv", "comparison", "figure", "rmse.png"} <= names
    assert "training data unknown" in capsys.readouterr().out


def test_the_same_seed_gives_the_same_numbers(tmp_path, weights):
    write_phantom_series(tmp_path / "in", slices=3, size=48)
    only = {"methods": ["restored"]}
    first, again, other = (
        run(tmp_path / "in", tmp_path / name, weights, seed=seed, **only)["rows"]
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first == again and first != other


def test_samples_are_drawn_as_the_weights_card_says_and_one_step_is_the_mean(tmp_path, weights):
    write_phantom_series(tmp_path / "in", slices=3, size=48)
    described = tmp_path / "described" / "model.pt"
    described.parent.mkdir()
    described.write_bytes(weights.read_bytes())
    card = {"schema": 1, "sha256": file_digest(described), "uncertainty": {"scale": 1.0, "residual_std": [0.9] * 16}}
    only = {"methods": ["restored", "sample_2_steps"], "sampled_steps": [2]}
    before = run(tmp_path / "in", tmp_path / "before", described, **only)
    described.with_suffix(".json").write_text(json.dumps(card))
    after = run(tmp_path / "in", tmp_path / "after", described, **only)
    mean, sample = ({row["method"]: row for row in content["rows"]} for content in (before, after))
    assert mean["restored"] == sample["restored"]
    assert sample["sample_2_steps"]["rmse_hu"] > mean["sample_2_steps"]["rmse_hu"], "more was drawn"
    assert after["settings"]["residual_std"] == [0.9] * 16


def test_a_stopped_evaluation_goes_on_with_the_next_series(tmp_path, weights, monkeypatch):
    for name in ("a", "b"):
        write_phantom_series(tmp_path / "in" / name, patient=name, slices=3, size=48)
    only = {"methods": ["restored", "tv3d"]}
    whole = run(tmp_path / "in", tmp_path / "whole", weights, **only)
    run(tmp_path / "in", tmp_path / "parts", weights, max_samples=1, **only)
    seen = []
    original = ComparisonEvaluator.process
    monkeypatch.setattr(
        ComparisonEvaluator, "process", lambda self, case, data: seen.append(case.key) or original(self, case, data)
    )
    parts = run(tmp_path / "in", tmp_path / "parts", weights, **only)
    assert parts == whole and len(seen) == 1
    run(tmp_path / "in", tmp_path / "parts", weights, seed=3, **only)
    assert len(seen) == 3, "other noise: all again"


def test_a_package_that_came_since_is_a_reason_to_evaluate_again(tmp_path, weights, monkeypatch):
    write_phantom_series(tmp_path / "in", slices=3, size=48)
    options = {"classical": ["bm3d"], "methods": ["bm3d"]}
    monkeypatch.setitem(sys.modules, "bm3d", None)
    monkeypatch.setattr(protocol, "optional_packages", lambda: {"bm3d": False})
    assert "bm3d" in run(tmp_path / "in", tmp_path / "out", weights, **options)["missing"]
    monkeypatch.setitem(sys.modules, "bm3d", types.SimpleNamespace(bm3d=lambda image, *_, **__: image))
    monkeypatch.setattr(protocol, "optional_packages", lambda: {"bm3d": True})
    found = run(tmp_path / "in", tmp_path / "out", weights, **options)
    assert "bm3d" in {row["method"] for row in found["rows"]} and "bm3d" not in found["missing"]


def test_what_the_index_refuses_is_told_and_makes_the_result_partial(tmp_path, weights):
    write_phantom_series(tmp_path / "in" / "good", patient="good", slices=3, size=48)
    write_phantom_series(tmp_path / "in" / "gap", patient="gap", slices=6, size=48)
    sorted((tmp_path / "in" / "gap").iterdir())[2].unlink()
    found = run(tmp_path / "in", tmp_path / "out", weights, methods=["restored"])
    assert exit_code() == ExitCode.PARTIAL and len({row["series"] for row in found["rows"]}) == 1
    (reason,) = found["failed"].values()
    assert "missing" in reason
    run(tmp_path / "in", tmp_path / "only", weights, methods=["restored"], validation_folders=["good"])
    assert exit_code() == ExitCode.DONE, "of other folders nothing is told"


@pytest.mark.parametrize(("task", "degradation"), [("thin", "low_dose"), ("denoise", "thick_slices")])
def test_weights_for_another_task_are_warned_of(tmp_path, capsys, task, degradation):
    write_phantom_series(tmp_path / "in", slices=6, size=48)
    weights = write_tiny_weights(tmp_path / "model.pt", part="denoiser", scale=0.02)
    weights.with_suffix(".json").write_text(json.dumps({"schema": 1, "task": task}))
    run(tmp_path / "in", tmp_path / "out", weights, methods=["restored"], degradation=degradation)
    assert f"the weights are for task '{task}'" in capsys.readouterr().err
    weights.with_suffix(".json").write_text(json.dumps({"schema": 1, "task": "denoise"}))
    run(tmp_path / "in", tmp_path / "other", weights, methods=["restored"])
    assert "the weights are for" not in capsys.readouterr().err


@pytest.mark.parametrize("dose", [0, 2, "full"])
def test_a_dose_that_cannot_be_is_refused_by_name(tmp_path, weights, dose):
    write_phantom_series(tmp_path / "in", slices=3, size=48)
    with pytest.raises(RuntimeError) as raised:
        run(tmp_path / "in", tmp_path / "out", weights, dose=dose)
    assert "dose must be" in str(find_bundle_error(raised.value))


def test_an_unforeseen_error_in_one_series_leaves_the_others_in_the_table(tmp_path, weights, monkeypatch):
    for name in ("a", "b"):
        write_phantom_series(tmp_path / "in" / name, patient=name, slices=3, size=48)
    original, seen = ComparisonEvaluator.process, []

    def broken(self, case, data):
        seen.append(case.key)
        return original(self, case, data) if len(seen) == 2 else 1 / 0

    monkeypatch.setattr(ComparisonEvaluator, "process", broken)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found = run(tmp_path / "in", tmp_path / "out", weights, methods=["restored"])
    assert exit_code() == ExitCode.DEFECT
    assert "ZeroDivisionError" in found["failed"][seen[0]]
    assert {row["series"] for row in found["rows"]} == {seen[1]}


def test_real_partners_take_the_place_of_simulated_noise_and_mismatches_are_named(tmp_path, weights):
    clean = phantom_hu(slices=4, size=64)
    poor = np.round(clean + np.random.default_rng(0).normal(0, 30, clean.shape)).clip(-1024, 3071)
    for name in ("one", "two", "three"):
        write_phantom_series(tmp_path / "good" / name, patient=name, hu=clean)
    write_phantom_series(tmp_path / "poor" / "one", patient="one", hu=poor)
    write_phantom_series(tmp_path / "poor" / "two", patient="two", hu=poor, spacing=(0.9, 0.9, 2.5))
    content = run(
        tmp_path / "good", tmp_path / "out", weights, degraded_dir=str(tmp_path / "poor"), methods=["restored"]
    )
    rows = {row["method"]: row for row in content["rows"]}
    assert len({row["series"] for row in content["rows"]}) == 1
    assert rows["input"]["rmse_hu"] == pytest.approx(np.sqrt(np.mean((poor - clean) ** 2)), rel=0.05)
    assert content["degradation"]["kind"] == "real"
    reasons = " ".join(content["failed"].values())
    assert len(content["failed"]) == 2 and "no degraded partner" in reasons and "same place" in reasons
    assert rows["floor"]["rmse_hu"] is None, "two noises of their own have no such floor"

    poorer = np.round(clean + np.random.default_rng(0).normal(0, 60, clean.shape)).clip(-1024, 3071)
    write_phantom_series(tmp_path / "poorer" / "one", patient="one", hu=poorer)
    again = run(
        tmp_path / "good", tmp_path / "out", weights, degraded_dir=str(tmp_path / "poorer"), methods=["restored"]
    )
    found = next(row for row in again["rows"] if row["method"] == "input")
    assert found["rmse_hu"] > 1.5 * rows["input"]["rmse_hu"], "results of other partners are not taken over"


def test_thick_slices_stand_against_interpolation(tmp_path, weights):
    write_phantom_series(tmp_path / "in", slices=16, size=48, spacing=(0.8, 0.8, 1.0))
    options = {"degradation": "thick_slices", "slice_thickness_mm": 3.0, "max_slices": -1, "classical": []}
    content = run(tmp_path / "in", tmp_path / "out", weights, methods=["restored", "linear", "cubic"], **options)
    rows = {row["method"]: row for row in content["rows"]}
    assert rows["linear"]["rmse_hu"] == rows["input"]["rmse_hu"] != rows["cubic"]["rmse_hu"]
    assert content["degradation"]["kind"] == "thick_slices"


def test_parameters_are_chosen_and_then_used(tmp_path, weights, capsys):
    write_phantom_series(tmp_path / "in", slices=3, size=64)
    grid = {"gaussian": {"sigma": [0.1, 0.3]}}
    run_tiny(
        "evaluate.yaml",
        "tuning",
        dataset_dir=tmp_path / "in",
        output_dir=tmp_path / "choice",
        weights=weights,
        parameter_grid=grid,
    )
    found = json.loads((tmp_path / "choice" / FILE).read_text())
    chosen = found["chosen"]["gaussian"]["sigma"]
    tuned_on = found["tuned_on"]
    assert (tuned_on["kind"], tuned_on["dose"], tuned_on["seed"], tuned_on["max_slices"]) == ("low_dose", 0.25, 1000, 8)
    options = {"parameters_file": str(tmp_path / "choice" / FILE), "classical": ["gaussian"], "methods": ["gaussian"]}
    content = run(tmp_path / "in", tmp_path / "out", weights, **options)
    assert f"sigma {chosen:g} (chosen on validation series)" in content["methods"]["gaussian"]
    (key,) = found["chosen_by_series"]
    assert content["parameters"] == {key: {"gaussian": {"sigma": chosen}}}
    assert "another degradation" not in capsys.readouterr().err
    other = run(tmp_path / "in", tmp_path / "other", weights, dose=0.5, best_of_series=True, **options)
    assert "its best parameters on each series itself (dose 0.25, not 0.5) where" in other["methods"]["gaussian"]
    assert "tuned on another degradation: dose 0.25, not 0.5" in capsys.readouterr().err


def test_of_a_folder_with_all_series_the_held_out_ones_are_evaluated(tmp_path, weights):
    layers = ["evaluate.yaml", "held_out.yaml"]
    names = load_config([ROOT / "configs" / "held_out.yaml"])["validation_folders"]
    (tmp_path / "in").mkdir()
    for name in ("trained_on", names[0]):
        write_phantom_series(tmp_path / "in" / name / "ct", patient=name, slices=3, size=48)
    quick = {"methods": ["gaussian"], "classical": ["gaussian"]}
    whole = run(tmp_path / "in", tmp_path / "whole", weights, **quick)
    assert len({row["series"] for row in whole["rows"]}) == 2
    with pytest.raises(RuntimeError) as raised:
        run(tmp_path / "in", tmp_path / "out", weights, config=layers, **quick)
    assert f"no usable case in the folders {', '.join(names[1:])}" in str(find_bundle_error(raised.value))
    one = run(tmp_path / "in", tmp_path / "out", weights, config=layers, validation_folders=names[:1], **quick)
    (key,) = {row["series"] for row in one["rows"]}
    alone = run(tmp_path / "in" / names[0], tmp_path / "alone", weights, **quick)
    assert {row["series"] for row in alone["rows"]} == {key}


def test_nothing_to_evaluate_is_one_line(tmp_path, weights):
    with pytest.raises(RuntimeError) as raised:
        run(tmp_path / "missing", tmp_path / "out", weights)
    assert isinstance(find_bundle_error(raised.value), BundleError)


@pytest.mark.parametrize("error", [InterruptedRun("stopped"), BundleError("full", exit_code=ExitCode.IO)])
def test_a_signal_in_the_middle_of_a_method_ends_the_run_and_is_not_that_methods_failure(error):
    def restore(_):
        raise error

    missing = {}
    with pytest.raises(BundleError) as caught:
        ComparisonEvaluator._restore(Method("bm3d", "baseline", "", restore), None, missing)
    assert caught.value is error and not missing
    refused = Method("bm3d", "baseline", "", lambda _: (_ for _ in ()).throw(BundleError("no package")))
    assert ComparisonEvaluator._restore(refused, None, missing) is None and missing == {"bm3d": "no package"}


def test_the_phantom_and_the_truth_stand_in_the_table_and_mirror_images_are_a_row(tmp_path):
    weights = write_tiny_weights(tmp_path / "model.pt", part="denoiser", scale=0.002)  # leaves edges to be measured
    write_phantom_series(tmp_path / "in", slices=2, size=128)
    few = {"classical": ["gaussian"], "methods": ["restored", "mean_of_2_flips", "gaussian"], "averaged_flips": 2}
    content = run(tmp_path / "in", tmp_path / "out", weights, phantom=True, **few)
    rows = {row["method"]: row for row in content["rows"]}
    assert list(rows) == ["input", "floor", "target", *few["methods"], "truth"]
    measured = {name for name in METRICS if rows["truth"][name] is not None}
    assert measured == {"edge_surface_percent", "edge_inner_percent", "residual_structure"}
    assert rows["mean_of_2_flips"]["rmse_hu"] != rows["restored"]["rmse_hu"]
    found = content["phantom"]
    assert list(found["rows"]) == ["target", "input", *few["methods"]] and found["dose"] == 0.25
    for values in found["rows"].values():
        assert list(values) == list(phantom.METRICS) == list(found["definitions"])
        assert values["detectability"] > 0 and values["transfer50_400_per_mm"] > 0
    assert found["rows"]["target"]["detectability"] > found["rows"]["input"]["detectability"]
    assert content["parameters"][phantom.KEY] == {"gaussian": {"sigma": 0.4}}


def test_what_fails_on_the_phantom_alone_is_missing_there(tmp_path, weights, monkeypatch):
    write_phantom_series(tmp_path / "in", slices=2, size=48)
    original = classical.FILTERS["gaussian"]

    def on_small_slices(volume_hu, *others):
        if volume_hu.shape[0] == phantom.SIZE:
            raise BundleError("no memory")
        return original.function(volume_hu, *others)

    monkeypatch.setitem(
        classical.FILTERS, "gaussian", classical.Filter(on_small_slices, original.definition, original.parameters)
    )
    # As few slices as have the regions that are needed.
    monkeypatch.setattr(protocol, "make_phantom", functools.partial(phantom.make_phantom, slices=8))
    few = {"classical": ["gaussian"], "methods": ["gaussian"], "phantom": True}
    content = run(tmp_path / "in", tmp_path / "out", weights, **few)
    assert "gaussian" in {row["method"] for row in content["rows"]}
    assert list(content["phantom"]["rows"]) == ["target", "input"]
    assert content["missing"] == {"gaussian": "not on the phantom: no memory"}
    assert phantom.KEY not in content["parameters"]


def test_a_blur_is_undone_without_a_floor_or_a_truth(tmp_path, weights):
    write_phantom_series(tmp_path / "in", slices=2, size=160)
    content = run(tmp_path / "in", tmp_path / "out", weights, degradation="kernel", methods=["restored"])
    rows = {row["method"]: row for row in content["rows"]}
    assert content["degradation"]["kind"] == "kernel" and content["phantom"] == {}
    assert rows["input"]["rmse_hu"] > 1 and rows["input"]["noise_ratio"] < 0.9, "blurred"
    assert rows["floor"]["rmse_hu"] is None and "truth" not in rows, "both are of the dose alone"
