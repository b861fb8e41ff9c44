"""Our rows: one step, samples, their mean, and the ablations leave the network as it was."""

import dataclasses

import numpy as np
import pytest
import torch
from phantom_series import phantom_hu
from shaken_networks import shaken

from bundle.degrade.slabs import ThickSlices
from bundle.errors import BundleError
from bundle.evaluation.methods import Problem
from bundle.evaluation.ours import our_methods
from bundle.metrics.noise import noise_level
from bundle.networks.presets import build_restorer
from bundle.restoration.inferer import RestorationInferer
from bundle.restoration.registry import NO_CARD, Calibration

HU = phantom_hu(slices=4, size=64)
PROBLEM = Problem("key", HU, np.roll(HU, 3), (0.8, 0.8, 2.5))


@pytest.fixture(scope="module")
def rows():
    network = shaken(("denoiser", "refiner"))
    inferer = RestorationInferer(mixed_precision="off")
    methods = our_methods(
        network, inferer, device=torch.device("cpu"), sampled_steps=[3], averaged_samples=2, averaged_steps=3
    )
    return network, {method.name: method for method in methods}


def test_the_rows(rows):
    _, methods = rows
    names = ["autoencoder", "restored", "sample_3_steps", "mean_of_2_samples", "no_denoiser", "no_refiner"]
    assert list(methods) == names
    assert methods["autoencoder"].kind == "reference" and methods["restored"].kind == "ours"
    assert "mean of 2 draws" in methods["mean_of_2_samples"].definition
    assert "1 step" in methods["restored"].definition


def test_every_row_is_another_restoration_and_none_changes_the_network(rows):
    network, methods = rows
    first = methods["restored"].restore(PROBLEM)
    results = {name: method.estimate(PROBLEM).volume_hu for name, method in methods.items()}
    assert all(result.shape == HU.shape for result in results.values())
    names = list(results)
    for i, name in enumerate(names):
        assert all(not np.array_equal(results[name], results[other]) for other in names[i + 1 :]), name
    np.testing.assert_array_equal(methods["restored"].restore(PROBLEM), first)
    assert network.use_denoiser and network.use_refiner


def test_the_ceiling_is_of_the_target_and_the_rest_never_sees_it(rows):
    _, methods = rows
    other = Problem("key", HU, HU, PROBLEM.spacing_mm)
    ceilings = [methods["autoencoder"].restore(problem) for problem in (PROBLEM, other)]
    assert np.abs(ceilings[0] - PROBLEM.target_hu).mean() < 1 and not np.array_equal(*ceilings)
    np.testing.assert_array_equal(methods["restored"].restore(other), methods["restored"].restore(PROBLEM))


def test_the_mean_of_draws_says_how_sure_it_is_and_the_card_calibrates_it(rows):
    network, methods = rows
    plain = methods["mean_of_2_samples"].estimate(PROBLEM)
    assert plain.deviation_hu.shape == HU.shape and (plain.deviation_hu >= 0).all() and plain.deviation_hu.max() > 0
    assert methods["restored"].estimate(PROBLEM).deviation_hu is None
    calibration = Calibration(scale=2.0, floor=0.5, constant_hu=1.0, known=True)
    card = dataclasses.replace(NO_CARD, calibration=calibration)
    inferer = RestorationInferer(mixed_precision="off")
    options = {"device": torch.device("cpu"), "averaged_samples": 2, "averaged_steps": 3, "card": card}
    (found,) = [m for m in our_methods(network, inferer, **options) if m.name == "mean_of_2_samples"]
    calibrated = found.estimate(PROBLEM)
    np.testing.assert_array_equal(calibrated.volume_hu, plain.volume_hu)
    scale, floor_hu = calibration.factors(noise_level(PROBLEM.degraded_hu), samples=2)
    expected = np.hypot(scale * plain.deviation_hu, floor_hu)
    np.testing.assert_allclose(calibrated.deviation_hu, np.where(plain.deviation_hu > 0, expected, 0), rtol=1e-5)


def test_a_row_of_mirror_images(rows):
    network, methods = rows
    inferer = RestorationInferer(mixed_precision="off")
    options = {"device": torch.device("cpu"), "averaged_flips": 4}
    (found,) = [m for m in our_methods(network, inferer, **options) if m.name == "mean_of_4_flips"]
    assert "1 step, mean over 4 mirror images" in found.definition
    expected = RestorationInferer(mixed_precision="off", flips=4)
    volume = torch.from_numpy(PROBLEM.degraded_hu)[None, None]
    spacing_mm = torch.tensor(PROBLEM.spacing_mm, dtype=torch.float32)[None]
    np.testing.assert_array_equal(found.restore(PROBLEM), expected(volume, network, spacing_mm=spacing_mm)[0, 0])
    assert not np.array_equal(found.restore(PROBLEM), methods["restored"].restore(PROBLEM))


def test_rows_of_weaker_strength_lie_between_input_and_restoration(rows):
    network, methods = rows
    options = {"device": torch.device("cpu"), "strengths": [0.0, 0.25, 1.0]}
    found = {m.name: m for m in our_methods(network, RestorationInferer(mixed_precision="off"), **options)}
    restored = methods["restored"].restore(PROBLEM)
    np.testing.assert_array_equal(found["strength_0.0"].restore(PROBLEM), PROBLEM.degraded_hu)
    np.testing.assert_allclose(found["strength_1.0"].restore(PROBLEM), restored, atol=1e-3)
    expected = 0.75 * PROBLEM.degraded_hu + 0.25 * restored
    np.testing.assert_allclose(found["strength_0.25"].restore(PROBLEM), expected, atol=1e-3)


def test_weights_for_thin_slices_keep_the_thick_ones(rows):
    network, methods = rows
    slabs = ThickSlices(thickness_mm=7.5)
    steps = ({"kind": "thick_slices", "thickness_mm": 7.5},)
    target = phantom_hu(slices=9, size=64)
    problem = Problem("key", slabs.apply(target, step_mm=2.5), target, (0.8, 0.8, 2.5), steps)
    options = {"device": torch.device("cpu"), "averaged_samples": 2, "averaged_steps": 3}
    inferer = RestorationInferer(mixed_precision="off")
    thin = our_methods(network, inferer, **options, data_consistency=True)
    averages = slabs.slab_weights(9, 2.5)
    for method in thin[1:]:
        kept = method.estimate(problem).volume_hu
        plain = methods[method.name].estimate(problem).volume_hu
        np.testing.assert_allclose(kept @ averages.T, target @ averages.T, atol=0.01)
        assert np.abs((plain - target) @ averages.T).max() > 0.1
        assert np.linalg.norm(kept - target) < np.linalg.norm(plain - target)


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"averaged_samples": 1}, "averaged_samples must be 2 or more"),
        ({"averaged_samples": 2.5}, "averaged_samples must be a whole number"),
        ({"averaged_flips": 3}, "averaged_flips must be 2 or 4"),
        ({"strengths": 0.5}, "strengths 0.5 is no list"),
        ({"strengths": [1.5]}, "strengths must be"),
        ({"sampled_steps": "4"}, "sampled_steps 4 is no list"),
        ({"sampled_steps": [0]}, "sampled_steps must be"),
    ],
)
def test_rows_that_cannot_be_are_refused_by_name(asked, named):
    with pytest.raises(BundleError, match=named):
        our_methods(build_restorer("tiny"), RestorationInferer(), device=torch.device("cpu"), **asked)
