import math

import pytest
import torch

from bundle.training.losses import (
    LEAST_NOISE_HU,
    LOSS_TERMS,
    SCALE_HU,
    charbonnier,
    kl_divergence,
    noise_relative_charbonnier,
)


@pytest.mark.parametrize("hu", [0.0, 1.0, -5.0, 12.0, 1000.0])
def test_charbonnier_of_a_constant(hu):
    expected = (math.sqrt(hu**2 + 25) - 5) / SCALE_HU
    assert float(charbonnier(torch.full((2, 1, 4, 4, 2), hu))) == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_charbonnier_is_quadratic_then_linear():
    small, large = charbonnier(torch.tensor([0.01])), charbonnier(torch.tensor([1.0e4]))
    assert float(small) == pytest.approx(0.01**2 / (2 * 5) / SCALE_HU, rel=0.05)
    assert float(large) == pytest.approx(1.0e4 / SCALE_HU, rel=1e-3)


def test_charbonnier_is_even_has_its_least_at_zero_and_a_bounded_slope():
    x = torch.linspace(-3000, 3000, 101, requires_grad=True)
    assert torch.equal(charbonnier(x), charbonnier(-x))
    charbonnier(x).backward()
    assert x.grad[50] == 0
    assert (x.grad.abs() * len(x) <= 1 / SCALE_HU + 1e-9).all()


def test_kl_is_zero_for_the_standard_normal_only():
    zero, one = torch.zeros(2, 4, 3, 3, 2), torch.ones(2, 4, 3, 3, 2)
    assert float(kl_divergence(zero, one)) == 0
    for mean, std in ((zero + 0.1, one), (zero, one * 0.9), (zero, one * 1.1)):
        assert float(kl_divergence(mean, std)) > 0


@pytest.mark.parametrize("mean,std", [(0.5, 1.0), (-1.0, 0.25), (2.0, 3.0)])
def test_kl_closed_form(mean, std):
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, std), torch.distributions.Normal(0.0, 1.0)
    )
    assert float(kl_divergence(torch.full((5,), mean), torch.full((5,), std))) == pytest.approx(float(expected))


def test_kl_is_finite_without_spread():
    assert torch.isfinite(kl_divergence(torch.zeros(3), torch.zeros(3)))


def test_terms_are_named_once():
    assert len(set(LOSS_TERMS)) == len(LOSS_TERMS)


def test_noise_relative_loss_knows_no_scale():
    difference = torch.randn(2, 1, 8, 8, 3, generator=torch.Generator().manual_seed(0))
    noise = torch.tensor([[5.0, 5.0, 5.0], [50.0, 50.0, 50.0]])
    scaled = difference * noise[:, None, None, None, :]
    assert noise_relative_charbonnier(scaled, noise) == pytest.approx(
        float(noise_relative_charbonnier(3 * scaled, 3 * noise)), rel=1e-6
    )
    # Half of the squared difference as long as it is small against the noise.
    small = 1e-2 * scaled
    expected = 0.5 * (1e-2 * difference).square().mean()
    assert noise_relative_charbonnier(small, noise) == pytest.approx(float(expected), rel=1e-2)


def test_beyond_its_corner_the_loss_is_linear():
    noise, unit = torch.full((1, 1), 10.0), 10.0 * torch.ones(1, 1, 4, 4, 1)
    at = [float(noise_relative_charbonnier(size * unit, noise, corner=30.0)) for size in (1.0, 1000.0, 2000.0)]
    assert at[0] == pytest.approx(0.5, rel=1e-3), "quadratic within"
    assert at[2] - at[1] == pytest.approx(1000.0 * 30.0, rel=1e-3), "its slope is the corner"


def test_a_scan_without_noise_does_not_outweigh_the_others():
    difference = torch.ones(1, 1, 4, 4, 1)
    least = torch.full((1, 1), LEAST_NOISE_HU)
    assert noise_relative_charbonnier(difference, 0 * least) == noise_relative_charbonnier(difference, least)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_a_slice_counts_by_a_power_of_its_noise(power):
    difference = torch.randn(1, 1, 8, 8, 3, generator=torch.Generator().manual_seed(0))
    noise = torch.tensor([[10.0, 10.0, 10.0]])
    loss = noise_relative_charbonnier(difference, noise, noisy_weight=power)
    four = noise_relative_charbonnier(4 * difference, 4 * noise, noisy_weight=power)
    assert float(four) == pytest.approx(4**power * float(loss), rel=1e-5)


def test_at_a_weight_of_two_small_errors_count_in_hu():
    difference = 10 * torch.randn(1, 1, 8, 8, 2, generator=torch.Generator().manual_seed(0))
    losses = [
        float(noise_relative_charbonnier(difference, torch.full((1, 2), noise), noisy_weight=2.0))
        for noise in (50.0, 150.0)
    ]
    assert losses == pytest.approx([float(difference.square().mean() / 2 / SCALE_HU**2)] * 2, rel=5e-3)
