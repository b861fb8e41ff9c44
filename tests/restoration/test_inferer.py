"""Tiles give what the whole gives; HU in, HU out."""

from pathlib import Path

import pytest
import torch
from phantom_series import phantom_hu
from shaken_networks import shaken

from bundle.configuration import bundle_root
from bundle.diffusion.noise import PositionalNoise
from bundle.errors import BundleError
from bundle.metrics.noise import noise_level
from bundle.networks.presets import build_restorer
from bundle.networks.weights import load_weights
from bundle.restoration.inferer import RestorationInferer
from bundle.units import LinearWindow


@pytest.fixture(scope="module")
def network():
    return shaken(("denoiser", "refiner"))


@pytest.fixture(scope="module")
def volume():
    return torch.from_numpy(phantom_hu(slices=8, size=64))[None, None]


def noise_of(image):
    """Noise level (1, D) of an image (1, 1, H, W, D)."""
    return torch.from_numpy(noise_level(image[0, 0].numpy()))[None]


def inferer(**options):
    """In tiles; slices that flow are in test_passes.py."""
    return RestorationInferer(mixed_precision="off", slices_at_once=0, **options)


def test_the_network_changes_this_volume(network, volume):
    assert (inferer()(volume, network) - volume).std() > 0.5


def test_one_tile_equals_the_network_called_directly(network, volume):
    level = noise_of(volume)
    with torch.inference_mode():
        direct = network.linear.to_hu(network(network.units.from_hu(volume), None, level))
    assert torch.allclose(inferer()(volume, network), direct, atol=1e-2)


class Pointwise:
    """Adds each slice's noise level to it: what tiles do to a network without borders is then exactly known."""

    units = linear = LinearWindow()
    multiple, process, slices_flow, seams_in_tiles = 1, None, False, False

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


@pytest.fixture(scope="module")
def pixelwise():
    """A Restorer whose every convolution sees one voxel's column of its own latent position only."""
    torch.manual_seed(1)
    restorer = build_restorer("tiny").eval()
    with torch.no_grad():
        for module in restorer.denoiser.modules():
            if isinstance(module, torch.nn.Conv3d):
                module.weight.normal_(std=0.3)
                if module.kernel_size[0] > 1:
                    centre = module.weight[..., 1:2, 1:2, 1:2].clone()
                    module.weight.zero_()
                    module.weight[..., 1:2, 1:2, 1:2] = centre
        restorer.latent_spread.fill_(0.05)
    return restorer


@pytest.mark.parametrize("tile_size", [(48, 48, 8), (32, 64, 3), (16, 16, 1)])
def test_draws_do_not_depend_on_tiles(pixelwise, volume, tile_size):
    """With a network that sees nothing around it, what is left of tiles is the noise: it is tied to positions."""
    whole = inferer(steps=3)(volume, pixelwise, noise_level=torch.full((1, 8), 15.0))
    assert (whole - volume).std() > 1, "the draws change this volume"
    tiled = inferer(steps=3, tile_size=tile_size, overlap=0.3)(volume, pixelwise, noise_level=torch.full((1, 8), 15.0))
    torch.testing.assert_close(tiled, whole, atol=0.01, rtol=0)


@pytest.mark.parametrize("options", [{}, {"steps": 2}, {"steps": 2, "num_samples": 3}])
def test_the_tile_batch_size_changes_nothing(network, volume, options):
    options = {"tile_size": (32, 48, 3), "skip_air": True, **options}
    one, many = (inferer(tile_batch_size=size, **options)(volume, network) for size in (1, 5))
    torch.testing.assert_close(many, one, atol=0.01, rtol=0)


@pytest.mark.parametrize(("precision", "most", "mean"), [("off", 0.01, 0.001), ("bf16", 1.0, 0.05)])
@pytest.mark.parametrize("steps", [1, 4])
def test_the_shipped_weights_agree_within_the_stated_tolerance(steps, precision, most, mean):
    """docs/inference.md states both bounds; bfloat16 keeps eight bits of a change of tens of HU."""
    shipped = build_restorer("small").eval()
    load_weights(shipped, Path(bundle_root()) / "models" / "model.pt")
    noise = torch.randn(96, 96, 8, generator=torch.Generator().manual_seed(1))
    noisy = (torch.from_numpy(phantom_hu(slices=8, size=96)) + 20 * noise)[None, None]
    options = {"slices_at_once": 0, "tile_size": (48, 48, 8), "steps": steps, "mixed_precision": precision}
    one, many = (RestorationInferer(tile_batch_size=size, **options)(noisy, shipped) for size in (1, 5))
    assert (one - noisy).std() > 5
    assert (one - many).abs().max() <= most
    assert (one - many).abs().mean() <= mean


def test_pieces_come_in_order_and_make_the_whole(network, volume):
    make = inferer(tile_size=(64, 64, 3), steps=2, num_samples=3)
    pieces = list(make.pieces(volume[0, 0], network))
    assert [piece.first for piece in pieces] == sorted(piece.first for piece in pieces)
    assert len(pieces) > 2
    difference = torch.cat([piece.difference for piece in pieces], dim=-1)
    torch.testing.assert_close(volume[0, 0] + difference, make(volume, network)[0, 0])
    deviation = torch.cat([piece.deviation for piece in pieces], dim=-1)
    assert deviation.shape == difference.shape and (deviation >= 0).all() and deviation.mean() > 0
    assert all(piece.deviation is None for piece in inferer().pieces(volume[0, 0], network))


def test_the_deviation_is_that_of_the_draws(network, volume):
    part = volume[0, 0, 16:48, 16:48, :2]
    (piece,) = inferer(steps=3, num_samples=4).pieces(part, network)
    noise = [PositionalNoise(seed=0, draw=draw) for draw in range(4)]
    x = network.units.from_hu(part[None, None])
    level = noise_of(part[None, None])
    with torch.inference_mode():
        draws = [
            network.sample(x, steps=3, noise=n.at([(0, 0, 0)], network.latent_shape(x)), noise_level=level)
            for n in noise
        ]
    hu = network.linear.to_hu(torch.stack(draws))[:, 0, 0]
    torch.testing.assert_close(piece.difference, hu.mean(0) - part, atol=1e-2, rtol=0)
    torch.testing.assert_close(piece.deviation, hu.std(0), atol=1e-2, rtol=0)


def test_whole_numbers_are_restored_as_floats_are(network, volume):
    (floats,) = inferer().pieces(volume[0, 0], network)
    (integers,) = inferer().pieces(volume[0, 0].to(torch.int16), network)
    assert torch.equal(floats.difference, integers.difference)


def test_air_is_left_alone_and_the_body_is_as_without(network):
    hu = torch.full((160, 160, 3), -1000.0)
    hu[56:104, 40:120] = torch.from_numpy(phantom_hu(slices=3, size=80))[16:64]
    whole, skipped = (inferer(skip_air=skip)(hu[None, None], network)[0, 0] for skip in (False, True))
    body = slice(60, 100), slice(44, 116)
    assert torch.equal(skipped[:16], hu[:16]) and torch.equal(skipped[:, :8], hu[:, :8])
    assert (skipped - whole)[body].std() < 0.25 * (whole - hu)[body].std()


def test_a_volume_of_air_comes_back(network):
    air = torch.full((1, 1, 40, 40, 5), -1000.0)
    assert torch.equal(inferer(skip_air=True)(air, network), air)


def test_samples_that_could_not_differ_are_refused(network, volume):
    with pytest.raises(BundleError, match="num_samples above 1 needs steps above 1"):
        inferer(num_samples=2)(volume, network)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("overlap", 1.0),
        ("overlap", -0.1),
        ("slice_overlap", -1),
        ("slices_at_once", -1),
        ("steps", 0),
        ("steps", 1001),
        ("num_samples", 0),
        ("tile_batch_size", 0),
        ("tile_size", (64, 64)),
        ("seed", -1),
    ],
)
def test_impossible_settings_are_named(key, value):
    with pytest.raises(BundleError, match=key):
        RestorationInferer(**{key: value})


@pytest.mark.parametrize("flips,axes", [(2, [(), (4,)]), (4, [(), (4,), (3,), (3, 4)])])
def test_flips_are_the_mean_of_restorations_of_mirror_images(network, volume, flips, axes):
    once = [inferer()(volume.flip(a), network).flip(a) for a in ([n - 1 for n in axis] for axis in axes)]
    found = inferer(flips=flips)(volume, network)
    torch.testing.assert_close(found, torch.stack(once).mean(0), atol=1e-2, rtol=0)
    assert (found - once[0]).abs().max() > 0.05


def test_more_steps_than_lie_before_the_start_are_refused(volume):
    late = build_restorer("tiny", sampler="dpm_solver", start_time=0.05)
    with pytest.raises(BundleError, match="steps must be at most 50 with this sampler and start_time, not 51"):
        inferer(steps=51).require_fit(late)
    inferer(steps=50).require_fit(late)


def test_flips_that_cannot_be_are_refused(network, volume):
    with pytest.raises(BundleError, match="flips must be 1, 2 or 4, not 3"):
        inferer(flips=3)
    with pytest.raises(BundleError, match="flips above 1 is for one step"):
        inferer(flips=2, steps=2)(volume, network)


def test_an_overlap_that_is_cut_is_said(caplog):
    RestorationInferer(tile_size=(64, 64, 24), slice_overlap=12)
    assert not caplog.text
    RestorationInferer(tile_size=(64, 64, 24), slice_overlap=100)
    assert "slice_overlap 100 is more than half a tile: 12 is used" in caplog.text
