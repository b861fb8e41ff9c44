"""Laws of the bridge. Samplers are linear in their noise when the predictor is, so a batch of unit impulses,
one per noise draw, gives the exact standard deviation of the samples without drawing any."""

import math

import pytest
import torch

from bundle.diffusion.bridge import BrownianBridge

STEPS = [1, 2, 3, 7, 50]
SHAPE = (2, 3, 4, 4, 2)


def normal(seed: int, shape=SHAPE) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def drawn(seed: int, shape=SHAPE):
    generator = torch.Generator().manual_seed(seed)
    return lambda _: torch.randn(shape, generator=generator, dtype=torch.float64)


def impulses(steps: int):
    """Noise of a batch of steps + 1: sample k has a single 1 in draw k, the last sample none at all."""
    return lambda step: torch.eye(steps + 1, dtype=torch.float64)[:, step : step + 1]


SPREAD = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64).reshape(1, 3, 1, 1, 1)


@pytest.mark.parametrize("steps", STEPS)
def test_a_constant_prediction_integrates_to_its_target(steps):
    bridge, degraded, prediction = BrownianBridge(), normal(0), normal(1)
    z = bridge.sample(lambda z_t, t: prediction, degraded, SPREAD, steps=steps, noise=drawn(2))
    torch.testing.assert_close(z, degraded + SPREAD * prediction, atol=1e-6, rtol=0)


def test_one_step_is_the_direct_prediction():
    bridge, degraded = BrownianBridge(), normal(0)

    def predict(z_t, t):
        return torch.sin(z_t) + t.reshape(-1, 1, 1, 1, 1)

    one = bridge.sample(predict, degraded, SPREAD, steps=1, noise=drawn(2))
    assert torch.equal(one, bridge.restore(predict, degraded, SPREAD))
    torch.testing.assert_close(one, degraded + SPREAD * (torch.sin(degraded) + 1))


def test_without_a_correction_and_noise_the_degraded_latent_stays():
    degraded = normal(0)
    z = BrownianBridge(noise_scale=0).sample(
        lambda z_t, t: torch.zeros_like(z_t), degraded, SPREAD, steps=5, noise=drawn(2)
    )
    torch.testing.assert_close(z, degraded, atol=1e-12, rtol=0)


def test_sampling_asks_at_times_from_one_down_and_stops_before_zero():
    times = []

    def predict(z_t, t):
        times.append(t.tolist())
        return torch.zeros_like(z_t)

    BrownianBridge().sample(predict, normal(0), SPREAD, steps=4, noise=drawn(0))
    assert times == [[time] * SHAPE[0] for time in (1.0, 0.75, 0.5, 0.25)]


@pytest.mark.parametrize("steps", [0, 1001])
def test_steps_out_of_range_are_refused(steps):
    with pytest.raises(ValueError, match="steps"):
        BrownianBridge().sample(lambda z_t, t: z_t, normal(0), SPREAD, steps=steps, noise=drawn(0))


@pytest.mark.parametrize("time", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_corruption_has_the_stated_mean_and_variance(time):
    """Exactly: the mean is the corruption without noise, the deviation its slope in the noise."""
    bridge, clean, degraded = BrownianBridge(noise_scale=1.5), normal(0), normal(1)
    t = torch.full((2,), time, dtype=torch.float64)
    mean = bridge.corrupt(clean, degraded, t, torch.zeros(SHAPE, dtype=torch.float64), SPREAD)
    torch.testing.assert_close(mean, (1 - time) * clean + time * degraded)
    noise = normal(2)
    slope = (bridge.corrupt(clean, degraded, t, noise, SPREAD) - mean) / noise
    torch.testing.assert_close(slope.square(), (1.5 * SPREAD).square().expand(SHAPE) * time * (1 - time))


def test_corruption_uses_each_samples_own_time():
    bridge, clean, degraded = BrownianBridge(), normal(0), normal(1)
    z_t = bridge.corrupt(clean, degraded, torch.tensor([0.0, 1.0]), normal(2), SPREAD)
    torch.testing.assert_close(z_t[0], clean[0])
    torch.testing.assert_close(z_t[1], degraded[1])


@pytest.mark.parametrize("time", [0.0, 0.3, 1.0])
def test_the_target_stands_for_the_clean_latent(time):
    bridge, clean, degraded, noise = BrownianBridge(), normal(0), normal(1), normal(2)
    t = torch.full((2,), time)
    z_t = bridge.corrupt(clean, degraded, t, noise, SPREAD)
    target = bridge.target(clean, degraded, t, noise, SPREAD)
    torch.testing.assert_close(bridge.to_clean(target, z_t, degraded, t, SPREAD), clean)


def test_the_target_has_unit_size_at_every_dose():
    bridge = BrownianBridge()
    clean, noise = normal(0, (64, 3, 8, 8, 2)), normal(1, (64, 3, 8, 8, 2))
    target = bridge.target(clean, clean + SPREAD * noise, torch.ones(64), noise, SPREAD)
    assert target.std(dim=(0, 2, 3, 4)).tolist() == pytest.approx([1, 1, 1], rel=0.03)


@pytest.mark.parametrize("steps", [2, 3, 7, 50])
def test_every_step_keeps_the_marginals_of_the_corruption(steps):
    """With the clean latent known, what the sampler passes through at t is distributed as corrupt() at t."""
    bridge, spread = BrownianBridge(noise_scale=1.5), torch.tensor(0.7, dtype=torch.float64)
    clean, degraded, seen = -0.4, 0.9, {}

    def predict(z_t, t):
        seen[float(t[0])] = z_t
        return torch.full_like(z_t, (clean - degraded) / float(spread))

    start = torch.full((steps + 1, 1), degraded, dtype=torch.float64)
    bridge.sample(predict, start, spread, steps=steps, noise=impulses(steps))
    assert len(seen) == steps
    for time, z_t in seen.items():
        mean = z_t[-1]
        assert float(mean) == pytest.approx((1 - time) * clean + time * degraded, abs=1e-6)
        variance = float((z_t[:-1] - mean).square().sum())
        assert variance == pytest.approx((1.5 * 0.7) ** 2 * time * (1 - time), abs=1e-6)


# The Gaussian toy: clean ~ N(0, S0^2), degraded = clean + N(0, SE^2). All distributions are known.
S0, SE = 1.0, 0.8
GAMMA = 1.5 * SE  # the bridge's noise: noise_scale times spread
POSTERIOR_VARIANCE = S0**2 * SE**2 / (S0**2 + SE**2)
DEGRADED = 1.3
POSTERIOR_MEAN = DEGRADED * S0**2 / (S0**2 + SE**2)


def gain(time: float) -> float:
    """Share of z_t's deviation from its mean that the exact E[clean | z_t, degraded] follows.

    Given degraded, clean is N(m, v), and z_t - t degraded = (1 - t) clean + GAMMA sqrt(t (1 - t)) noise.
    """
    return POSTERIOR_VARIANCE / (GAMMA**2 * time + (1 - time) * POSTERIOR_VARIANCE)


def exact(z_t, t):
    time = float(t[0])
    clean = POSTERIOR_MEAN + gain(time) * (z_t - time * DEGRADED - (1 - time) * POSTERIOR_MEAN)
    return (clean - DEGRADED) / SE


def toy(steps: int) -> tuple[float, float]:
    """Exact mean and standard deviation of the sampler's output."""
    start = torch.full((steps + 1, 1), DEGRADED, dtype=torch.float64)
    z = BrownianBridge(noise_scale=1.5).sample(
        exact, start, torch.tensor(SE, dtype=torch.float64), steps=steps, noise=impulses(steps)
    )
    return float(z[-1]), float((z[:-1] - z[-1]).square().sum().sqrt())


@pytest.mark.parametrize("steps", [*STEPS, 250])
def test_the_toys_posterior_mean_is_exact_for_every_step_count(steps):
    assert toy(steps)[0] == pytest.approx(POSTERIOR_MEAN, abs=1e-6)


@pytest.mark.parametrize("steps", [*STEPS, 250])
def test_the_toys_standard_deviation_follows_its_closed_form(steps):
    """From t to s, Var_s = (s/t + (1 - s/t) gain_t)^2 Var_t + GAMMA^2 s (t - s) / t; at the end gain_t^2 Var_t."""
    variance = 0.0
    for step in range(steps - 1):
        t, s = 1 - step / steps, 1 - (step + 1) / steps
        variance = (s / t + (1 - s / t) * gain(t)) ** 2 * variance + GAMMA**2 * s * (t - s) / t
    assert toy(steps)[1] == pytest.approx(gain(1 / steps) * math.sqrt(variance), abs=1e-6)


@pytest.mark.parametrize(("steps", "tolerance"), [(10, 0.25), (50, 0.09), (250, 0.03), (1000, 0.01)])
def test_the_toys_standard_deviation_reaches_the_posteriors(steps, tolerance):
    """One step is the mean, whose deviation is 0; what n steps fall short by is measured and shrinks with n."""
    truth = math.sqrt(POSTERIOR_VARIANCE)
    shortfall = 1 - toy(steps)[1] / truth
    assert 0 < shortfall < tolerance


def corrected_toy(steps: int, *, residual: float = math.sqrt(POSTERIOR_VARIANCE) / SE) -> tuple[float, float]:
    """As `toy`, with the posterior's deviation known in units of the spread."""
    start = torch.full((steps + 1, 1), DEGRADED, dtype=torch.float64)
    z = BrownianBridge(noise_scale=1.5, residual_std=(residual,)).sample(
        exact, start, torch.tensor(SE, dtype=torch.float64), steps=steps, noise=impulses(steps)
    )
    return float(z[-1]), float((z[:-1] - z[-1]).square().sum().sqrt())


@pytest.mark.parametrize("steps", [2, 3, 7, 50])
def test_with_the_residual_known_every_step_count_gives_the_exact_posterior(steps):
    mean, deviation = corrected_toy(steps)
    assert mean == pytest.approx(POSTERIOR_MEAN, abs=1e-6)
    assert deviation == pytest.approx(math.sqrt(POSTERIOR_VARIANCE), rel=1e-6)


def test_one_step_stays_the_mean_whatever_is_known():
    assert corrected_toy(1) == pytest.approx((POSTERIOR_MEAN, 0.0), abs=1e-6)


def test_nothing_unknown_draws_less_than_the_bridge_alone_and_too_much_more():
    """The correction follows what it is told: it is no constant."""
    deviations = [corrected_toy(4, residual=r)[1] for r in (1e-9, 0.3, 0.6, 1.2)]
    assert deviations == sorted(deviations)
    assert deviations[0] == pytest.approx(toy(4)[1], rel=1e-6)


def test_residuals_are_per_channel():
    bridge = BrownianBridge(residual_std=(0.0, 0.5, 1.0))
    z = bridge.sample(
        lambda z_t, t: torch.zeros_like(z_t), torch.zeros(SHAPE), torch.tensor(1.0), steps=2, noise=lambda _: normal(3)
    )
    plain = BrownianBridge().sample(
        lambda z_t, t: torch.zeros_like(z_t), torch.zeros(SHAPE), torch.tensor(1.0), steps=2, noise=lambda _: normal(3)
    )
    assert torch.allclose(z[:, 0].double(), plain[:, 0].double())
    assert z[:, 2].std() > z[:, 1].std() > 0


def test_drawn_samples_have_the_mean_and_deviation_that_impulses_say():
    shape = (1, 50_000)
    z = BrownianBridge(noise_scale=1.5).sample(
        exact, torch.full(shape, DEGRADED), torch.tensor(SE), steps=50, noise=drawn(3, shape)
    )
    assert float(z.mean()) == pytest.approx(POSTERIOR_MEAN, abs=0.01)
    assert float(z.std()) == pytest.approx(toy(50)[1], rel=0.02)


def test_training_times_start_often_and_repeat_with_a_seed():
    bridge = BrownianBridge(start_fraction=0.45)
    t = bridge.sample_times(20_000, generator=torch.Generator().manual_seed(0))
    assert ((t > 0) & (t <= 1)).all() or (t == 0).sum() <= 1
    assert float((t == 1).float().mean()) == pytest.approx(0.45, abs=0.015)
    assert float(t[t < 1].mean()) == pytest.approx(0.5, abs=0.015)
    assert torch.equal(t, bridge.sample_times(20_000, generator=torch.Generator().manual_seed(0)))
    assert (BrownianBridge(start_fraction=1.0).sample_times(9) == 1).all()
