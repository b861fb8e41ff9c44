"""The best parameters are found and written down."""

import json

import numpy as np
import pytest
from monai.data import MetaTensor
from phantom_series import phantom_hu

from bundle.configuration import exit_code
from bundle.data.sources import Case
from bundle.errors import BundleError, ExitCode, InterruptedRun
from bundle.evaluation import classical
from bundle.evaluation.chosen import read_parameters
from bundle.evaluation.tuning import FILE, choose_parameters
from bundle.restoration.worklist import SeriesDataset

GRIDS = {"gaussian": {"sigma": [0.2, 0.5, 3.0]}, "tv3d": {"strength": [0.01, 0.5]}}


def dataset(*noises, fail=()):
    def load(data):
        name = data["image"][0]
        if name in fail:
            raise BundleError("cannot be read")
        clean = phantom_hu(slices=3, size=64)
        sigma = float(name)
        poor = clean + np.random.default_rng(1).normal(0, sigma, clean.shape).astype(np.float32)
        return {"image": MetaTensor(poor[None]), "label": MetaTensor(clean[None])}

    cases = [Case(key=f"key-{noise}", patient_key=str(noise), files=(str(noise),), label="") for noise in noises]
    return SeriesDataset(cases, load)


def test_the_least_error_is_chosen_over_all_series_and_for_each(tmp_path):
    text = choose_parameters(dataset(40.0, 120.0), grids=GRIDS, folder=tmp_path)
    content = read_parameters(tmp_path / FILE)
    assert "gaussian" in text and "tv3d" in text
    for name, point in content["chosen"].items():
        tried = content["tried"][name]
        means = [np.mean(list(entry["relative_rmse"].values())) for entry in tried]
        best = tried[int(np.argmin(means))]
        assert all(best[key] == value for key, value in point.items())
    assert set(content["chosen_by_series"]) == {"key-40.0", "key-120.0"}
    assert content["chosen"]["tv3d"] == {"strength": 0.5}
    assert "tv3d strength 0.5" in content["at_the_end_of_the_grid"]


def test_choices_at_the_end_of_a_grid_are_named_overall_and_by_series(tmp_path):
    grids = {"gaussian": {"sigma": [0.2, 0.6, 3.0]}, "tv3d": {"strength": [0.5]}}
    choose_parameters(dataset(3.0, 120.0), grids=grids, folder=tmp_path)
    content = read_parameters(tmp_path / FILE)
    best = {key: own["gaussian"]["sigma"] for key, own in content["chosen_by_series"].items()}
    assert best == {"key-3.0": 0.2, "key-120.0": 0.6}, "one series at the end, one within"
    assert content["chosen"]["gaussian"]["sigma"] == 0.2
    assert content["at_the_end_of_the_grid"] == ["gaussian sigma 0.2", "key-3.0: gaussian sigma 0.2"]


def test_what_was_tuned_on_is_kept(tmp_path):
    tuned_on = {"kind": "low_dose", "dose": 0.1, "seed": 1000, "max_slices": 8}
    choose_parameters(dataset(40.0), grids=GRIDS, folder=tmp_path, tuned_on=tuned_on)
    assert read_parameters(tmp_path / FILE)["tuned_on"] == tuned_on
    choose_parameters(dataset(40.0), grids=GRIDS, folder=tmp_path)
    assert read_parameters(tmp_path / FILE)["tuned_on"] == {}


def test_a_series_or_a_package_that_fails_is_named_and_the_rest_goes_on(tmp_path, monkeypatch):
    def absent(*_):
        raise BundleError("the package is not installed")

    broken = classical.Filter(absent, "broken", ("strength",))
    monkeypatch.setitem(classical.FILTERS, "bm3d", broken)
    grids = {**GRIDS, "bm3d": {"strength": [1.0]}}
    choose_parameters(dataset(40.0, 60.0, fail=("60.0",)), grids=grids, folder=tmp_path)
    content = json.loads((tmp_path / FILE).read_text())
    assert set(content["chosen"]) == {"gaussian", "tv3d"}
    assert content["missing"] == {"bm3d": "the package is not installed"}
    assert content["failed"] == {"key-60.0": "cannot be read"} and exit_code() == ExitCode.PARTIAL
    with pytest.raises(BundleError, match="no parameters could be chosen"):
        choose_parameters(dataset(60.0, fail=("60.0",)), grids=GRIDS, folder=tmp_path)


@pytest.mark.parametrize("error", [InterruptedRun("stopped"), BundleError("full", exit_code=ExitCode.IO)])
def test_a_signal_in_the_middle_of_a_filter_ends_the_run_without_a_file(tmp_path, monkeypatch, error):
    def raising(*_):
        raise error

    monkeypatch.setitem(classical.FILTERS, "tv3d", classical.Filter(raising, "", ("strength",)))
    with pytest.raises(BundleError) as caught:
        choose_parameters(dataset(40.0), grids=GRIDS, folder=tmp_path)
    assert caught.value is error and not (tmp_path / FILE).exists()
