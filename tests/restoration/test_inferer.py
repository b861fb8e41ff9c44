"""Tiles give what the whole gives; HU in, HU out."""

import numpy as np
import pytest
import torch
from phantom_series import phantom_hu

from bundle.errors import BundleError
from bundle.networks.presets import build_restorer
from bundle.restoration.inferer import RestorationInferer, measure_noise
from bundle.units import LinearWindow


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    restorer = build_restorer("tiny").eval()
    with torch.no_grad():
        for parameter in restorer.denoiser.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        for parameter in restorer.refiner.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return restorer


@pytest.fixture(scope="module")
def volume():
    return torch.from_numpy(phantom_hu(slices=8, size=64))[None, None]


def inferer(**options):
    return RestorationInferer(mixed_precision="off", **options)


def test_the_network_changes_this_volume(network, volume):
    assert (inferer()(volume, network) - volume).std() > 0.5


def test_one_tile_equals_the_network_called_directly(network, volume):
    level = measure_noise(volume)
    with torch.inference_mode():
        direct = network.linear.to_hu(network(network.units.from_hu(volume), None, level))
    assert torch.allclose(inferer()(volume, network), direct, atol=1e-2)


class Pointwise:
    """Adds each slice's noise level to it: what tiles do to a network without borders is then exactly known."""

    units = linear = LinearWindow()

    def __call__(self, x, spacing_mm, levels):
        return x + levels[:, None, None, None, :] / self.linear.hu_per_unit


def test_blended_tiles_are_the_whole_and_every_slice_has_its_own_noise_level(volume):
    levels = torch.linspace(1, 9, volume.shape[-1])[None]
    tiled = inferer(tile_size=(24, 40, 3), overlap=0.4)(volume, Pointwise(), noise_level=levels)
    assert torch.allclose(tiled, volume + levels[:, None, None, None, :], atol=1e-2)


def test_tiles_do_not_shift_the_level(network, volume):
    whole = inferer()(volume, network)
    tiled = inferer(tile_size=(48, 48, 6), overlap=0.5)(volume, network)
    # Random weights exaggerate what a tile's border does; trained ones are judged by the evaluation.
    assert (tiled - whole).std() < 0.25 * (whole - volume).std()


@pytest.mark.parametrize("shape", [(37, 50, 3), (64, 33, 1)])
def test_any_size(network, volume, shape):
    part = volume[:, :, : shape[0], : shape[1], : shape[2]]
    assert inferer()(part, network).shape == part.shape


def test_draws_repeat_with_the_seed_and_differ_without_it(network, volume):
    part = volume[:, :, 16:48, 16:48, :2]
    first = inferer(steps=3, seed=1)(part, network)
    assert torch.equal(first, inferer(steps=3, seed=1)(part, network))
    assert not torch.equal(first, inferer(steps=3, seed=2)(part, network))


def test_the_mean_of_draws_varies_less_than_a_draw(network, volume):
    part = volume[:, :, 16:48, 16:48, :2]
    one = [inferer(steps=3, seed=s)(part, network) for s in range(4)]
    many = [inferer(steps=3, seed=s, num_samples=6)(part, network) for s in range(4)]
    assert torch.stack(many).std(0).mean() < 0.7 * torch.stack(one).std(0).mean()


def test_reconstruct_is_the_autoencoder_alone(network, volume):
    assert (inferer().reconstruct(volume, network) - volume).abs().max() < 0.05, "a lossless start"


def test_measured_noise_is_per_slice(volume):
    assert measure_noise(volume).shape == (1, 8)
    assert np.isfinite(measure_noise(volume).numpy()).all()


@pytest.mark.parametrize(("key", "value"), [("overlap", 1.0), ("overlap", -0.1), ("steps", 0), ("steps", 1001)])
def test_impossible_settings_are_named(key, value):
    with pytest.raises(BundleError, match=key):
        inferer(**{key: value})
