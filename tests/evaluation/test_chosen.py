"""Parameters that were chosen are used, and what they were chosen on is said."""

import logging

import numpy as np
import pytest

from bundle.errors import BundleError
from bundle.evaluation.chosen import chosen_methods, read_parameters, tuned_elsewhere
from bundle.evaluation.methods import Problem

CONTENT = {"chosen": {"gaussian": {"sigma": 0.5}}, "chosen_by_series": {"a": {"gaussian": {"sigma": 1e-3}}}}
QUARTER = {"kind": "low_dose", "dose": 0.25, "calibrate_noise": True, "seed": 1000, "slice_thickness_mm": 5.0}


def test_choices_are_used_and_the_best_of_a_series_on_request():
    hu = np.random.default_rng(0).normal(0, 50, (32, 32, 2)).astype(np.float32)
    problems = {key: Problem(key, hu, hu, (1, 1, 1)) for key in "ab"}
    (overall,) = chosen_methods(["gaussian"], {}, CONTENT, best_of_series=False)
    (own,) = chosen_methods(["gaussian"], {}, CONTENT, best_of_series=True)
    assert "sigma 0.5 (chosen on validation series)" in overall.definition
    np.testing.assert_allclose(own.restore(problems["a"]), hu, atol=1e-3)
    np.testing.assert_array_equal(own.restore(problems["b"]), overall.restore(problems["b"]))
    assert [own.parameters_of(key) for key in "ab"] == [{"sigma": 1e-3}, {"sigma": 0.5}]
    assert [overall.parameters_of(key) for key in "ab"] == [{"sigma": 0.5}] * 2
    (configured,) = chosen_methods(["gaussian"], {"gaussian": {"sigma": 0.7}}, {}, best_of_series=False)
    assert "as configured" in configured.definition


def test_the_best_of_a_series_says_what_the_others_get():
    both = {"gaussian": {"sigma": 0.7}, "tv3d": {"strength": 0.5}}
    gaussian, tv3d = chosen_methods(list(both), both, CONTENT, best_of_series=True)
    assert gaussian.definition == (
        "Gaussian filter within slices; its best parameters on each series itself where tried, "
        "otherwise sigma 0.5 (chosen on validation series)"
    )
    assert tv3d.definition.endswith("; strength 0.5 (as configured)"), "no series has one of its own"


def test_parameters_of_another_degradation_are_used_with_a_warning_and_the_table_says_so(caplog):
    content = {**CONTENT, "tuned_on": {**QUARTER, "dose": 0.1, "seed": 7}}
    with caplog.at_level(logging.WARNING):
        (overall,) = chosen_methods(["gaussian"], {}, content, best_of_series=False, degradation=QUARTER)
        (own,) = chosen_methods(["gaussian"], {}, content, best_of_series=True, degradation=QUARTER)
    assert "sigma 0.5 (chosen on validation series: dose 0.1, not 0.25)" in overall.definition
    assert "on each series itself (dose 0.1, not 0.25) where tried" in own.definition
    assert len(caplog.messages) == 2 and all("dose 0.1, not 0.25" in message for message in caplog.messages)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        same = {**CONTENT, "tuned_on": {**QUARTER, "seed": 7}}
        for file in (CONTENT, same, {"tuned_on": content["tuned_on"]}):
            chosen_methods(["gaussian"], {"gaussian": {"sigma": 0.7}}, file, best_of_series=True, degradation=QUARTER)
    assert caplog.messages == [], "nothing is known, the same, or nothing of the file is used"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, ""),
        ({"seed": 1, "slice_thickness_mm": 3.0, "max_slices": 4}, ""),
        ({"kind": ["low_dose"]}, ""),
        ({"kind": ["low_dose", "kernel"]}, "low_dose and kernel, not low_dose"),
        ({"kind": "real"}, "real, not low_dose"),
        ({"kind": None}, "none, not low_dose"),
        ({"dose": 0.5, "calibrate_noise": False}, "dose 0.5, not 0.25, calibrate_noise False, not True"),
    ],
)
def test_what_differs_is_what_decides(changed, said):
    assert tuned_elsewhere({**QUARTER, **changed}, QUARTER) == said
    assert tuned_elsewhere({}, QUARTER) == tuned_elsewhere(QUARTER, {}) == ""


def test_thickness_and_blur_decide_where_they_are_applied():
    thick, blurred = ({**QUARTER, "kind": kind, "mtf50_per_mm": 0.3} for kind in ("thick_slices", "kernel"))
    assert tuned_elsewhere({**thick, "slice_thickness_mm": 3.0, "dose": 1}, thick) == "slice_thickness_mm 3.0, not 5.0"
    assert tuned_elsewhere({**blurred, "mtf50_per_mm": 0.4, "dose": 1}, blurred) == "mtf50_per_mm 0.4, not 0.3"


def test_what_cannot_be_read_or_is_not_there_is_named(tmp_path):
    assert read_parameters(None) == {}
    (tmp_path / "x.json").write_text("{}")
    (tmp_path / "list.json").write_text("[]")
    for name in ("x.json", "list.json", "absent.json"):
        with pytest.raises(BundleError, match="run tuning"):
            read_parameters(tmp_path / name)
    (tmp_path / "old.json").write_text('{"schema": 1}')  # of before it was kept what was tuned on
    assert read_parameters(tmp_path / "old.json") == {"schema": 1}
    with pytest.raises(BundleError, match="no parameters"):
        chosen_methods(["gaussian"], {}, {}, best_of_series=False)
    with pytest.raises(BundleError, match="unknown"):
        chosen_methods(["median"], {"median": {}}, {}, best_of_series=False)
