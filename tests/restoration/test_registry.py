"""Cards of weights: read whole, never of other weights, and chosen by task."""

import hashlib
import json

import numpy as np
import pytest

from bundle.errors import BundleError
from bundle.restoration.registry import (
    NO_CARD,
    Calibration,
    objections,
    other_domains,
    read_card,
    task_of,
    weights_for,
)

CARD = {
    "schema": 1,
    "name": "small",
    "task": "denoise",
    "sampler": "bridge",
    "domain": {"noise_hu": [5, 40]},
    "uncertainty": {"scale": 1.3, "residual_std": [0.5, 0.25]},
}


def weights(folder, name="model", **changes):
    path = folder / f"{name}.pt"
    path.write_bytes(name.encode())
    card = {**CARD, "sha256": hashlib.sha256(name.encode()).hexdigest(), **changes}
    path.with_suffix(".json").write_text(json.dumps(card))
    return path


def test_a_card_is_read_whole(tmp_path):
    card = read_card(weights(tmp_path))
    assert (card.task, card.sampler, card.domain) == ("denoise", "bridge", {"noise_hu": [5, 40]})
    assert card.residual_std == (0.5, 0.25) and card.calibration == Calibration(scale=1.3, known=True)
    fitted = {"scale": 1.0, "floor": 0.5, "constant_hu": 2.0, "steps": 4}
    assert read_card(weights(tmp_path, uncertainty=fitted)).calibration == Calibration(**fitted, known=True)


def test_without_a_calibration_the_scale_is_one_and_said_to_be_unknown(tmp_path):
    card = read_card(weights(tmp_path, uncertainty={}))
    assert card.calibration == Calibration() and not card.calibration.known
    factor, added = card.calibration.factors(np.array([5.0, 20.0]), samples=2)
    assert factor == 1 and not added.any()


def test_a_calibrated_deviation_knows_noise_what_was_left_out_and_the_mean_s_own_error():
    calibration = Calibration(scale=2.0, floor=0.5, constant_hu=3.0, known=True)
    factor, added = calibration.factors(np.array([0.0, 8.0]), samples=4)
    assert factor == pytest.approx(2.0 * np.sqrt(1.25))
    np.testing.assert_allclose(added, np.sqrt(1.25) * np.array([3.0, 5.0]))
    same, more = calibration.factors(np.array([0.0, 8.0]), samples=4, left_out_hu=np.array([0.0, 7.0]))
    assert same == factor
    np.testing.assert_allclose(more, np.hypot(added, [0.0, 7.0]))


@pytest.mark.parametrize(
    ("method", "steps", "expected"),
    [("bridge", 4, True), ("bridge", 2, False), ("bridge", 50, False), ("ddim", 4, False)],
)
def test_a_calibration_is_for_samples_drawn_as_those_it_was_fitted_to(tmp_path, method, steps, expected):
    card = read_card(weights(tmp_path, uncertainty={"scale": 1.0, "steps": 4}))
    assert card.calibrates(method, steps=steps) == expected
    assert not read_card(weights(tmp_path, uncertainty={"steps": 4})).calibrates(method, steps=steps)


def test_no_card_and_the_card_of_other_weights_are_none(tmp_path, caplog):
    assert read_card(tmp_path / "other.pt") is NO_CARD
    path = weights(tmp_path)
    path.write_bytes(b"trained on")
    assert read_card(path) is NO_CARD
    assert "other weights" in caplog.text


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"schema": 2}',
        '{"schema": 1, "uncertainty": {"scale": "wide"}}',
        '{"schema": 1, "uncertainty": {"scale": -1}}',
    ],
)
def test_a_damaged_card_is_named(tmp_path, text):
    path = weights(tmp_path)
    path.with_suffix(".json").write_text(text)
    with pytest.raises(BundleError, match=r"model\.json"):
        read_card(path)


def test_weights_are_chosen_by_task(tmp_path):
    weights(tmp_path, "aaa", task="thin")
    expected = weights(tmp_path, "model")
    assert weights_for("denoise", tmp_path) == str(expected)
    assert weights_for("thin", tmp_path).endswith("aaa.pt")


def test_domains_of_other_tasks_are_those_of_the_weights_beside(tmp_path):
    thin = weights(tmp_path, "thin", task="thin", domain={"noise_hu": [1, 9]})
    denoise = weights(tmp_path, "model", task="denoise", domain={"noise_hu": [2, 8]})
    weights(tmp_path, "another", task="sharpen", domain={"noise_hu": [1, 9]})  # of a later version
    (tmp_path / "settings.json").write_text("{}")  # of no weights
    (tmp_path / "other.pt").write_bytes(b"")
    (tmp_path / "other.json").write_text("{}")  # no card
    assert other_domains(denoise, read_card(denoise)) == {"thin": {"noise_hu": [1, 9]}}
    assert other_domains(thin, read_card(thin)) == {"denoise": {"noise_hu": [2, 8]}}
    assert other_domains(denoise, NO_CARD) == {}
    assert other_domains(tmp_path / "nowhere" / "model.pt", read_card(thin)) == {}


def test_weights_without_a_card_are_for_denoising(tmp_path):
    assert weights_for("denoise", tmp_path).endswith("model.pt")
    with pytest.raises(BundleError, match="no weights for task 'thin'"):
        weights_for("thin", tmp_path)
    with pytest.raises(BundleError, match="task 'sharpen'"):
        weights_for("sharpen", tmp_path)


def test_weights_of_another_task_are_refused(tmp_path):
    card = read_card(weights(tmp_path, task="thin"))
    assert all(task_of(one, "thin", slice_spacing_mm=1.0) is one for one in (card, NO_CARD))
    with pytest.raises(BundleError, match="are for task 'thin', not 'denoise'"):
        task_of(card, "denoise")


def test_thin_slices_need_their_distance(tmp_path):
    for card in (read_card(weights(tmp_path, task="thin")), NO_CARD):
        with pytest.raises(BundleError, match="task 'thin' needs slice_spacing_mm"):
            task_of(card, "thin", slice_spacing_mm=None)


def test_thin_slices_are_no_matter_for_weights_that_denoise(tmp_path):
    denoise, thin = (read_card(weights(tmp_path, name, task=name)) for name in ("denoise", "thin"))
    assert objections(denoise, slice_spacing_mm=1.0) and not objections(denoise, slice_spacing_mm=None)
    assert not objections(thin, slice_spacing_mm=1.0) and not objections(NO_CARD, slice_spacing_mm=1.0)
