import pytest
import torch
from phantom_series import phantom_hu
from shaken_networks import shaken

from bundle.networks.precision import resolve_precision
from bundle.restoration.draws import Draw, deviation, take_in


@pytest.mark.parametrize("count", [1, 2, 7])
def test_moments_are_those_of_all_images_at_once(count):
    images = 100 + torch.randn(count, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean, squares = torch.zeros(4, 3, dtype=torch.float64), torch.zeros(4, 3, dtype=torch.float64)
    for number, image in enumerate(images, 1):
        take_in(image, mean, squares, count=number)
    torch.testing.assert_close(mean, images.mean(0))
    torch.testing.assert_close(deviation(squares, count), images.std(0) if count > 1 else torch.zeros_like(mean))


def test_one_image_is_taken_to_the_bit():
    image = torch.randn(50, generator=torch.Generator().manual_seed(0))
    mean = torch.zeros(50)
    take_in(image, mean, count=1)
    assert torch.equal(mean, image)


@pytest.fixture(scope="module")
def tile():
    hu = torch.from_numpy(phantom_hu(slices=3, size=32))[None, None]
    return hu, torch.full((1, 3), 20.0), [(0, 0, 0)]


def draw(**options):
    return Draw(network=shaken(), spacing_mm=None, precision=resolve_precision("off", "cpu"), **options)


def go(legs, tile):
    state = ()
    with torch.inference_mode():
        for leg in legs:
            state = leg(*tile, state)
    return state


@pytest.mark.parametrize("most", [1, 2, 3, 4, 6])
def test_legs_lead_where_one_leg_does(tile, most):
    one = draw(steps=6, seed=3)
    assert len(one.legs()) == 1 and len(one.legs(most)) == -(-6 // most)
    (whole,), (found,) = go(one.legs(), tile), go(one.legs(most), tile)
    assert torch.equal(found, whole) and whole.shape == tile[0].shape


def test_between_legs_there_are_latents(tile):
    one = draw(steps=6)
    (latent,) = go(one.legs(4)[:1], tile)
    assert latent.shape == one.network.latent_shape(tile[0])


def test_draws_of_other_numbers_and_seeds_differ(tile):
    first, *others = (go(draw(steps=2, **options).legs(), tile)[0] for options in ({}, {"number": 1}, {"seed": 1}))
    assert all((first - other).abs().max() > 0.01 for other in others)


def test_one_step_takes_one_leg_and_turns_its_mirror_image_back(tile):
    plain, turned = draw(), draw(axes=(3,))
    assert len(plain.legs(4)) == len(turned.legs(4)) == 1
    hu, *rest = tile
    torch.testing.assert_close(
        go(turned.legs(), tile)[0], go(plain.legs(), (hu.flip(3), *rest))[0].flip(3), atol=1e-3, rtol=0
    )
