"""Restorations whose slices flow are those of the whole volume, to rounding: there is no seam."""

import pytest
import torch
from phantom_series import phantom_hu

from bundle.networks.acceleration import accelerated
from bundle.networks.presets import build_restorer
from bundle.restoration.inferer import RestorationInferer

SIZE = (48, 48, 23)
DEPTH = SIZE[2]
WHOLE = {"slices_at_once": 0, "tile_size": (4096, 4096, 4096)}


def shaken(**options):
    """A network whose weights are far from their start, so that every convolution sees its neighbours."""
    torch.manual_seed(0)
    restorer = build_restorer("tiny", **options).eval()
    with torch.no_grad():
        for part in (restorer.autoencoder, restorer.denoiser, restorer.refiner):
            for parameter in part.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
    return restorer


@pytest.fixture(scope="module")
def network():
    return shaken()


@pytest.fixture(scope="module")
def volume():
    return torch.from_numpy(phantom_hu(slices=DEPTH, size=48))[None, None]


def inferer(*, tile_size=(512, 512, 1), **options):
    """For slices that flow where nothing else is said: a tile has fewer than any volume here."""
    return RestorationInferer(mixed_precision="off", tile_size=tile_size, **options)


def restored(volume, network, **options):
    return inferer(**options)(volume, network)


def difference(volume, network, flow, **options):
    """Largest difference in HU between flowing and the whole at once, beside what the restoration changes."""
    whole = restored(volume, network, **WHOLE, **options)
    assert (whole - volume).std() > 0.5, "the network changes this volume"
    return float((restored(volume, network, **flow, **options) - whole).abs().max())


@pytest.mark.parametrize("at_once", [1, 3, 8, 30])
def test_one_step(volume, network, at_once):
    assert difference(volume, network, {"slices_at_once": at_once}) < 0.01


@pytest.mark.parametrize("steps", [2, 4])
def test_few_steps(volume, network, steps):
    assert difference(volume, network, {"slices_at_once": 4}, steps=steps) < 0.02


@pytest.mark.parametrize("options", [{"steps": 5}, {"steps": 2, "num_samples": 2}, {"flips": 2}])
def test_what_would_hold_many_slices_is_cut_into_tiles(network, options):
    assert inferer().flows(network, SIZE) and not inferer(**options).flows(network, SIZE)


def test_what_fits_a_tile_is_restored_in_one_and_larger_planes_are_cut(network):
    assert not inferer(tile_size=(512, 32, 1)).flows(network, SIZE)
    assert not inferer(tile_size=(512, 512, DEPTH)).flows(network, SIZE)
    assert inferer(tile_size=(512, 512, DEPTH)).flows(network, (48, 48, DEPTH + 1))


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpm_solver"])
@pytest.mark.parametrize("start_time", [1.0, 0.4])
def test_every_sampler(volume, sampler, start_time):
    network = shaken(sampler=sampler, start_time=start_time, eta=0.5 if sampler == "ddim" else 0.0)
    whole = restored(volume, network, **WHOLE, steps=3)
    flowing = restored(volume, network, slices_at_once=4, steps=3)
    change = (whole - volume).std()
    assert (flowing - whole).abs().max() < 1e-4 * change + 0.02


def test_pieces_come_in_order_and_small(volume, network):
    pieces = list(inferer(slices_at_once=4).pieces(volume[0, 0], network))
    counts = [piece.difference.shape[-1] for piece in pieces]
    assert [piece.first for piece in pieces] == [sum(counts[:n]) for n in range(len(pieces))]
    assert max(counts) <= 4 and sum(counts) == volume.shape[-1]


def test_the_autoencoder_alone_flows(volume, network):
    flowing, whole = (inferer(**options).reconstruct(volume, network) for options in ({"slices_at_once": 5}, WHOLE))
    torch.testing.assert_close(flowing, whole, atol=0.01, rtol=0)


def test_the_body_s_box_is_that_of_all_slices(network):
    hu = torch.full((160, 96, 20), -1000.0)
    body = torch.from_numpy(phantom_hu(slices=20, size=48))
    for k in range(20):  # an oblique body: the box of one slice holds no other's
        hu[2 * k + 30 : 2 * k + 78, 24:72, k] = body[..., k]
    flowing = restored(hu[None, None], network, slices_at_once=4, skip_air=True)[0, 0]
    whole = restored(hu[None, None], network, **WHOLE, skip_air=True)[0, 0]
    torch.testing.assert_close(flowing, whole, atol=0.01, rtol=0)
    assert torch.equal(flowing[145:], hu[145:]), "air far from every slice's body is left as it was"


def test_air_alone_comes_back(network):
    air = torch.full((1, 1, 40, 40, 9), -1000.0)
    assert torch.equal(restored(air, network, slices_at_once=4, skip_air=True), air)


def test_memory_does_not_grow_with_the_volume(network):
    """What is held between passes depends on the network and the plane only."""
    held = []
    for depth in (80, 160):
        pieces = inferer(slices_at_once=4).pieces(torch.from_numpy(phantom_hu(slices=depth, size=32)), network)
        held.append(max(_held(pieces) for _ in pieces))
    assert held[0] == held[1] > 0


def _held(pieces):
    """Values that the stream of a running restoration holds."""
    stream = pieces.gi_frame.f_locals["passing"].gi_frame.f_locals["stream"]
    return sum(x.numel() for x in stream._held.values())


def test_networks_with_norms_over_windows_are_cut_into_tiles():
    with torch.device("meta"):  # its weights would take 1.5 GB
        assert not build_restorer("full").slices_flow


def test_compiled_networks_are_cut_into_tiles(network):
    make = inferer()
    assert make.flows(network, SIZE)
    assert make.flows(accelerated(network), SIZE)
    assert not make.flows(accelerated(network, backend="eager"), SIZE)
    assert not inferer(slices_at_once=0).flows(network, SIZE)
