"""A Brownian bridge between degraded (t = 1) and clean (t = 0) latents.

After Li et al. 2023 (BBDM, arXiv:2205.07680) and Liu et al. 2023 (I2SB, arXiv:2302.05872), with the clean latent
as the prediction: one step is the regressor's mean, several steps draw from the posterior.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bundle.diffusion.process import DiffusionProcess, Noise, Predict, State, per_sample


@dataclass(frozen=True, kw_only=True)
class BrownianBridge(DiffusionProcess):
    """z_t = (1 - t) clean + t degraded + noise_scale * spread * sqrt(t (1 - t)) * noise.

    The network predicts (clean - degraded) / spread, so that its output has unit size at every dose.

    Args:
        noise_scale: size of the bridge's noise in units of `spread`.
        start_fraction: part of the training samples at t = 1, where every restoration begins; the others are
            uniform in (0, 1).
        residual_std: what the prediction at t = 1 leaves unknown: the standard deviation of clean minus predicted
            latents in units of `spread`, one per latent channel, measured with the trained network; None when it
            was not measured. With it, several steps draw what few steps otherwise leave out (`advance`).
    """

    noise_scale: float = 1.5
    start_fraction: float = 0.45
    residual_std: Sequence[float] | None = None

    @property
    def method(self) -> str:
        """'bridge': its other settings belong to the weights."""
        return "bridge"

    @property
    def most_steps(self) -> int:
        """1000; times are continuous, so that more could be taken, to no use."""
        return 1000

    def sample_times(self, batch: int, *, generator: torch.Generator | None = None) -> torch.Tensor:
        """Draw training times (batch,)."""
        start = torch.rand(batch, generator=generator) < self.start_fraction
        return torch.where(start, torch.ones(batch), torch.rand(batch, generator=generator))

    def corrupt(
        self, clean: torch.Tensor, degraded: torch.Tensor, t: torch.Tensor, noise: torch.Tensor, spread: torch.Tensor
    ) -> torch.Tensor:
        """Return the latent at time t."""
        t = per_sample(t, clean)
        return (1 - t) * clean + t * degraded + self.noise_scale * spread * (t * (1 - t)).sqrt() * noise

    def target(
        self, clean: torch.Tensor, degraded: torch.Tensor, t: torch.Tensor, noise: torch.Tensor, spread: torch.Tensor
    ) -> torch.Tensor:
        """Return (clean - degraded) / spread, whatever the time."""
        return (clean - degraded) / spread

    def to_clean(
        self,
        prediction: torch.Tensor,
        z_t: torch.Tensor,
        degraded: torch.Tensor,
        t: torch.Tensor,
        spread: torch.Tensor,
    ) -> torch.Tensor:
        """Return degraded + spread * prediction."""
        return degraded + spread * prediction

    def restore(self, predict: Predict, degraded: torch.Tensor, spread: torch.Tensor) -> torch.Tensor:
        """Return the prediction at t = 1: the posterior mean, no noise drawn."""
        start = torch.ones(degraded.shape[0], device=degraded.device)
        return self.to_clean(predict(degraded, start), degraded, degraded, start, spread)

    def start(self, degraded: torch.Tensor, noise: Noise) -> State:
        """Return the degraded latent: the bridge begins there."""
        return (degraded,)

    def advance(
        self,
        predict: Predict,
        state: State,
        degraded: torch.Tensor,
        spread: torch.Tensor,
        *,
        step: int,
        steps: int,
        noise: Noise,
    ) -> State:
        """Take one of `steps` equal steps of time from 1 to 0; where there is one, it equals `restore`.

        From t to s < t the bridge between clean and z_t is exact (Brownian bridge, conditioned at both ends):
        mean (1 - s/t) clean + (s/t) z_t, variance (noise_scale * spread)^2 s (t - s) / t. The prediction stands in
        for `clean`, and is only its mean: what z_t leaves unknown of it, Var(clean | z_t), is missing from the
        result, the more the fewer steps. Where `residual_std` is known it is added, (1 - s/t)^2 Var(clean | z_t)
        per step: the optimal variance of Bao et al. 2022 (Analytic-DPM, arXiv:2201.06503) for this bridge. For
        Gaussian data every number of steps is then exact.
        """
        (z_t,) = state
        now, then = 1 - step / steps, 1 - (step + 1) / steps
        t = torch.full((degraded.shape[0],), now, device=degraded.device)
        clean = self.to_clean(predict(z_t, t), z_t, degraded, t, spread)
        variance: float | torch.Tensor = self.noise_scale**2 * then * (now - then) / now
        if self.residual_std is not None and steps > 1:
            variance = variance + (1 - then / now) ** 2 * self._unknown(now, like=degraded)
        elif step == steps - 1:
            return (clean,)
        return ((then / now) * z_t + (1 - then / now) * clean + spread * variance**0.5 * noise(step),)

    def _unknown(self, t: float, *, like: torch.Tensor) -> torch.Tensor:
        """Var(clean | z_t) / spread^2 for Gaussian latents, (1, L, 1, ...).

        Given the degraded latent, clean has the variance v = residual_std^2 and z_t - t degraded is
        (1 - t) clean + noise_scale sqrt(t (1 - t)) noise, so that 1 / Var = 1 / v + (1 - t) / (noise_scale^2 t).
        """
        assert self.residual_std is not None
        v = torch.tensor(self.residual_std, dtype=like.dtype, device=like.device).square()
        v = v.reshape(1, -1, *[1] * (like.ndim - 2))
        if self.noise_scale == 0:  # z_t then follows from clean: nothing is unknown
            return torch.zeros_like(v) if t < 1 else v
        return v / (1 + v * (1 - t) / (self.noise_scale**2 * t))
