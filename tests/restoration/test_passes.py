"""What works voxel by voxel must not see how a volume is cut; noise is measured once a slice."""

import functools

import pytest
import torch
from phantom_series import phantom_hu

from bundle.restoration import passes
from bundle.restoration.passes import Passage
from bundle.restoration.tiles import cut

DEPTH = 11
HU = torch.from_numpy(phantom_hu(slices=DEPTH, size=48))


def gain(factor):
    """A draw in one leg: `factor` times the HU and ten times the noise level."""

    def leg(hu, levels, origins, state):
        return (factor * hu + 10 * levels[:, None, None, None, :],)

    return [leg]


def passage(*factors, tile=32, **options):
    settings = {"noise_level": None, "deviation": False, "multiple": 4, "skip_air": False}
    return Passage(
        volume=HU,
        draws=[gain(factor) for factor in factors],
        spans=lambda axis, start, stop: cut(start, stop, tile=tile, overlap=8, multiple=4),
        device=torch.device("cpu"),
        **{**settings, **options},
    )


def slabs(tile, overlap):
    return cut(0, DEPTH, tile=tile, overlap=overlap)


def gathered(finished):
    pieces = list(finished)
    assert [piece.first for piece in pieces] == [
        sum(p.values.shape[-1] for p in pieces[:n]) for n in range(len(pieces))
    ]
    assert sum(piece.worked for piece in pieces) == DEPTH
    return torch.cat([piece.values for piece in pieces], dim=-1)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("tile", "overlap"), [(DEPTH, 0), (4, 2), (1, 0)])
def test_the_cut_cannot_be_seen(batch, tile, overlap):
    levels = torch.linspace(5, 20, DEPTH)
    found = gathered(passage(0.5, noise_level=levels).tiled(slabs(tile, overlap), batch=batch))
    torch.testing.assert_close(found[0], 0.5 * HU + 10 * levels, atol=0.01, rtol=1e-5)


def test_mean_and_deviation_of_several_draws():
    options = {"noise_level": torch.zeros(DEPTH), "deviation": True}
    mean, deviation = gathered(passage(1.0, 2.0, 6.0, **options).tiled(slabs(4, 2), batch=2))
    torch.testing.assert_close(mean, 3 * HU, atol=0.01, rtol=1e-5)
    torch.testing.assert_close(deviation, HU.abs() * torch.tensor([1.0, 2.0, 6.0]).std(), atol=0.01, rtol=1e-5)


def test_the_state_goes_from_leg_to_leg():
    def first(hu, levels, origins, state):
        assert state == ()
        return hu + 1, hu + 2

    def second(hu, levels, origins, state):
        return (state[0] + state[1] - hu,)

    one = passage(noise_level=torch.zeros(DEPTH))
    one.draws = [[first, second]]
    found = gathered(one.tiled(slabs(4, 2), batch=1))
    torch.testing.assert_close(found[0], HU + 3, atol=0.01, rtol=1e-5)


def test_noise_is_measured_once_a_slice(monkeypatch):
    measured = []

    def watched(slab, original):
        measured.append(slab.shape[-1])
        return original(slab)

    monkeypatch.setattr(passes, "estimate_noise", functools.partial(watched, original=passes.estimate_noise))
    cut_up = gathered(passage(0.0).tiled(slabs(5, 3), batch=1))
    assert sum(measured) == DEPTH
    torch.testing.assert_close(cut_up, gathered(passage(0.0).tiled(slabs(DEPTH, 0), batch=1)), atol=1e-3, rtol=1e-5)


def test_air_alone_takes_no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("air is left out")

    one = passage(0.0, skip_air=True)
    one.volume, one.draws = torch.full_like(HU, -1000.0), [[refuse]]
    assert not gathered(one.tiled(slabs(4, 2), batch=1)).any()
