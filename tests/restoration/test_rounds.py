"""Restorations whose slices flow are those of the whole volume, to rounding: there is no seam."""

import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from phantom_series import phantom_hu
from shaken_networks import shaken

from bundle.networks.acceleration import accelerated
from bundle.networks.presets import build_restorer
from bundle.networks.slice_stream import SliceStream
from bundle.pages import Scratch
from bundle.restoration import rounds
from bundle.restoration.inferer import RestorationInferer

SIZE = (48, 48, 23)
DEPTH = SIZE[2]
WHOLE = {"slices_at_once": 0, "tile_size": (4096, 4096, 4096)}


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


@pytest.mark.parametrize("steps", [1, 2])
def test_group_norms_and_attention(volume, steps):
    """The design of `full`, which has both, of slices by themselves; random weights change everything."""
    network = shaken(preset="full_quarter")
    changes = float((restored(volume, network, **WHOLE, steps=steps) - volume).std())
    found = difference(volume, network, {"slices_at_once": 4}, steps=steps)
    assert found < 1e-4 * changes and changes > 100


@pytest.mark.parametrize(
    ("preset", "options", "warned"),
    [
        ("full_quarter", {"slices_at_once": 4, "tile_size": (48, 48, 8)}, False),
        ("full_quarter", {"slices_at_once": 0, "tile_size": (48, 48, DEPTH)}, False),
        ("full_quarter", {"slices_at_once": 0, "tile_size": (48, 48, 8)}, True),
        ("full_quarter", {"slices_at_once": 4, "tile_size": (48, 32, DEPTH)}, True),
        ("tiny", {"slices_at_once": 0, "tile_size": (32, 32, 8)}, False),
    ],
)
def test_tiles_of_a_network_that_sees_whole_slices_are_warned_of(volume, caplog, preset, options, warned):
    next(iter(inferer(**options).pieces(volume[0, 0], build_restorer(preset))))
    assert ("there will be seams" in caplog.text) == warned


@pytest.mark.parametrize("steps", [1, 2])
def test_an_autoencoder_that_is_a_change_of_basis(volume, steps):
    network = shaken(("denoiser", "refiner"))
    assert difference(volume, network, {"slices_at_once": 4}, steps=steps) < 0.02
    with torch.no_grad():
        assert network.autoencoder.only_changes_basis()


@pytest.mark.parametrize("steps", [2, 4])
def test_few_steps(volume, network, steps):
    assert difference(volume, network, {"slices_at_once": 4}, steps=steps) < 0.02


@pytest.mark.parametrize(
    "options",
    [{"steps": 6}, {"steps": 9}, {"steps": 2, "num_samples": 3}, {"steps": 5, "num_samples": 2}, {"flips": 4}],
)
def test_steps_samples_and_flips_in_rounds(volume, network, options):
    assert difference(volume, network, {"slices_at_once": 4}, **options) < 0.02


def test_the_deviation_of_samples(volume, network):
    found = []
    for flow in ({"slices_at_once": 4}, WHOLE):
        pieces = inferer(**flow, steps=2, num_samples=3).pieces(volume[0, 0], network)
        found.append(torch.cat([piece.deviation for piece in pieces if piece.worked == 0 or flow is WHOLE], dim=-1))
    assert found[0].mean() > 0.1
    torch.testing.assert_close(*found, atol=0.01, rtol=0.001)


def test_planes_that_are_too_large_are_cut_and_their_slices_flow(volume, network):
    """Beside tiles of the same rows and columns that hold all slices."""
    cut = {"tile_size": (32, 40, 1), "overlap": 0.5}
    flowing = restored(volume, network, slices_at_once=4, **cut)
    tiles = restored(volume, network, slices_at_once=0, **{**cut, "tile_size": (32, 40, DEPTH)})
    torch.testing.assert_close(flowing, tiles, atol=0.01, rtol=0)
    assert not torch.equal(flowing, restored(volume, network, **WHOLE)), "the borders of tiles can be told"


@pytest.mark.parametrize("options", [{}, {"steps": 9}, {"steps": 2, "num_samples": 3}, {"tile_size": (32, 40, 1)}])
def test_the_work_adds_up_to_the_volume_s_slices(volume, network, options):
    worked = [piece.worked for piece in inferer(slices_at_once=4, **options).pieces(volume[0, 0], network)]
    assert sum(worked) == DEPTH and max(worked) <= 4


def test_what_is_kept_between_rounds_lies_where_it_is_told(volume, network, tmp_path):
    asked = []

    def pages(shape, kind):
        asked.append((shape, kind))
        return Scratch(tmp_path)(shape, kind)

    options = {"slices_at_once": 4, "steps": 6, "num_samples": 2}
    on_disk = restored(volume, network, scratch=pages, **options)
    assert torch.equal(on_disk, restored(volume, network, **options))
    latent = network.latent_shape(volume)
    # The result, mean and squares of the draws, and the latent of each draw between its two legs.
    image = ((DEPTH, 1, 48, 48), np.float32)
    assert asked == [((DEPTH, 2, 48, 48), np.float32), image, image, *[((DEPTH, *latent[1:4]), np.float32)] * 2]


def test_what_waits_in_a_network_holds_no_pages_of_the_disk(network, tmp_path):
    """Latents between two legs: after each pass next to none of their file is in memory."""
    kept = []

    def pages(shape, kind):
        kept.append(Scratch(tmp_path)(shape, kind))
        return kept[-1]

    hu = torch.from_numpy(phantom_hu(slices=40, size=64))
    most = 0
    for _ in inferer(slices_at_once=4, steps=6, scratch=pages).pieces(hu, network):
        most = max([most, *map(resident, kept)])
    assert len(kept) == 3 and all(array.nbytes == hu.nbytes for array in kept)
    assert most <= hu.nbytes / 4


def resident(array):
    """Bytes of a mapped array that are in this process' memory."""
    address = f"{np.lib.array_utils.byte_bounds(array)[0]:x}-"
    lines = Path("/proc/self/smaps").read_text().split("\n")
    start = next(n for n, line in enumerate(lines) if line.startswith(address))
    (rss,) = [line.split()[1] for line in lines[start : start + 8] if line.startswith("Rss:")]
    return 1024 * int(rss)


def test_any_kind_of_number_can_be_restored(network, volume):
    restored(volume.to(torch.bfloat16), network, slices_at_once=4)
    restored(volume.double().requires_grad_(), network, slices_at_once=4)


def test_one_round_keeps_nothing(volume, network):
    def pages(shape, kind):
        raise AssertionError("nothing is to be kept")

    restored(volume, network, slices_at_once=4, steps=4, scratch=pages)


@pytest.mark.parametrize(("tile", "most"), [(48, 16), (32, 16), (20, 10)])
def test_few_slices_are_restored_in_one(network, tile, most):
    one = inferer(tile_size=(512, 512, tile))
    assert not one.flows(network, (48, 48, most)) and one.flows(network, (48, 48, most + 1))


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpm_solver"])
@pytest.mark.parametrize(("start_time", "steps"), [(1.0, 3), (0.4, 3), (1.0, 6)])
def test_every_sampler(volume, sampler, start_time, steps):
    network = shaken(sampler=sampler, start_time=start_time, eta=0.5 if sampler == "ddim" else 0.0)
    whole = restored(volume, network, **WHOLE, steps=steps)
    flowing = restored(volume, network, slices_at_once=4, steps=steps)
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


@pytest.mark.parametrize("options", [{}, {"steps": 2, "num_samples": 2}])
def test_memory_does_not_grow_with_the_volume(network, monkeypatch, options):
    """What is held between passes depends on the network and the plane only, and on no round before."""
    streams = weakref.WeakSet()

    class Watched(SliceStream):
        def __init__(self, **options):
            super().__init__(**options)
            streams.add(self)

    def held():
        assert len(streams) <= 1, "a round's slices are let go with it"
        return sum(
            x.numel()
            for stream in streams
            for part in ([stream._held.values()], stream._waiting.values())
            for queue in part
            for x in queue
        )

    monkeypatch.setattr(rounds, "SliceStream", Watched)
    most = []
    for depth in (80, 160):
        hu = torch.from_numpy(phantom_hu(slices=depth, size=32))
        most.append(max(held() for _ in inferer(slices_at_once=4, **options).pieces(hu, network)))
    assert most[0] == most[1] > 0


def test_compiled_networks_are_cut_into_tiles(network):
    make = inferer()
    assert make.flows(network, SIZE)
    assert make.flows(accelerated(network), SIZE)
    assert not make.flows(accelerated(network, backend="eager"), SIZE)
    assert not inferer(slices_at_once=0).flows(network, SIZE)
