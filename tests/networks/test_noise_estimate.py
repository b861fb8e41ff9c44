import numpy as np
import pytest
import torch
from phantom_series import phantom_hu

from bundle.metrics.noise import noise_level as reference
from bundle.networks.noise_estimate import noise_level


def volumes():
    rng = np.random.default_rng(5)
    body = phantom_hu(size=96, slices=3)
    return {
        "body": body,
        "odd": phantom_hu(size=64, slices=2)[:61, :50],
        "air": np.full((40, 40, 2), -1000.0, np.float32) + rng.normal(0, 7, (40, 40, 2)).astype(np.float32),
        "flat": np.full((32, 48, 1), 40.0, np.float32),
        "short": body[:7],
        "lung": body - 800,
    }


@pytest.mark.parametrize("name", volumes())
def test_equals_the_estimate_of_arrays(name):
    volume = volumes()[name]
    estimate = noise_level(torch.from_numpy(volume)[None, None])
    assert estimate.shape == (1, volume.shape[2])
    np.testing.assert_allclose(estimate[0].numpy(), reference(volume), rtol=1e-5)


def test_each_volume_of_a_batch_by_itself():
    first, second = (torch.from_numpy(phantom_hu(size=48, slices=2, seed=seed)) for seed in (0, 1))
    both = noise_level(torch.stack([first, 3 * second])[:, None])
    assert torch.equal(both, torch.cat([noise_level(v[None, None]) for v in (first, 3 * second)]))


def test_not_a_number_gives_the_floor():
    assert noise_level(torch.full((1, 1, 32, 32, 2), torch.nan)).tolist() == [[pytest.approx(0.1)] * 2]


def test_traced_it_follows_the_input():
    example = torch.from_numpy(phantom_hu(size=48, slices=2))[None, None]
    with torch.no_grad():
        traced = torch.jit.trace(noise_level, example, check_trace=False)
    other = torch.from_numpy(4 * phantom_hu(size=64, slices=3)[:57])[None, None]
    torch.testing.assert_close(traced(other), noise_level(other))
