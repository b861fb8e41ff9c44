"""Our rows: one step, samples, their mean, and the ablations leave the network as it was."""

import numpy as np
import pytest
import torch
from phantom_series import phantom_hu

from bundle.evaluation.methods import Problem
from bundle.evaluation.ours import our_methods
from bundle.networks.presets import build_restorer
from bundle.restoration.inferer import RestorationInferer

HU = phantom_hu(slices=4, size=64)
PROBLEM = Problem("key", HU, np.roll(HU, 3), (0.8, 0.8, 2.5))


@pytest.fixture(scope="module")
def rows():
    torch.manual_seed(0)
    network = build_restorer("tiny").eval()
    with torch.no_grad():
        for parameter in [*network.denoiser.parameters(), *network.refiner.parameters()]:
            parameter.add_(0.02 * torch.randn_like(parameter))
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
    results = {name: method.restore(PROBLEM) for name, method in methods.items()}
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
