"""A Brownian bridge between degraded (t = 1) and clean (t = 0) latents.

After Li et al. 2023 (BBDM, arXiv:2205.07680) and Liu et al. 2023 (I2SB, arXiv:2302.05872), with the clean latent
as the prediction: one step is the regressor's mean, several steps draw from the posterior.
"""

from dataclasses import dataclass

import torch

from bundle.diffusion.process import Noise, Predict, check_steps, per_sample


@dataclass(frozen=True, kw_only=True)
class BrownianBridge:
    """z_t = (1 - t) clean + t degraded + noise_scale * spread * sqrt(t (1 - t)) * noise.

    The network predicts (clean - degraded) / spread, so that its output has unit size at every dose.

    Args:
        noise_scale: size of the bridge's noise in units of `spread`.
        start_fraction: part of the training samples at t = 1, where every restoration begins; the others are
            uniform in (0, 1).
    """

    noise_scale: float = 1.5
    start_fraction: float = 0.45

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

    def sample(
        self, predict: Predict, degraded: torch.Tensor, spread: torch.Tensor, *, steps: int, noise: Noise
    ) -> torch.Tensor:
        """Draw a clean latent in `steps` equal steps of time from 1 to 0; one step equals `restore`.

        From t to s < t the bridge between clean and z_t is exact (Brownian bridge, conditioned at both ends):
        mean (1 - s/t) clean + (s/t) z_t, variance (noise_scale * spread)^2 s (t - s) / t.
        """
        check_steps(steps)
        z_t = degraded
        for step in range(steps):
            now, then = 1 - step / steps, 1 - (step + 1) / steps
            t = torch.full((degraded.shape[0],), now, device=degraded.device)
            clean = self.to_clean(predict(z_t, t), z_t, degraded, t, spread)
            if step == steps - 1:
                return clean
            deviation = self.noise_scale * spread * (then * (now - then) / now) ** 0.5
            z_t = (then / now) * z_t + (1 - then / now) * clean + deviation * noise(step)
        raise AssertionError("unreachable: the last step returns")
