"""Gaussian diffusion: DDPM (Ho et al. 2020, arXiv:2006.11239), DDIM (Song et al. 2021, arXiv:2010.02502) and
DPM-Solver++ (Lu et al. 2022, arXiv:2211.01095).

Own samplers, because those of MONAI 1.6 and monai-generative 0.2.3 take their previous step from t - 1 or
t - 1000 // n whatever steps were set, and clamp the clean latent to [-1, 1]. Here the previous step is looked up.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

import torch

from bundle.diffusion.process import DiffusionProcess, Noise, Predict, State, per_sample

Parameterisation = Literal["epsilon", "v", "x0"]
Sampler = Literal["ddim", "ddpm", "dpm_solver"]


@dataclass(frozen=True, kw_only=True)
class GaussianDiffusion(DiffusionProcess):
    """z_t = sqrt(abar_t) clean + sqrt(1 - abar_t) noise, conditional on the degraded latent.

    Args:
        parameterisation: what the network predicts: 'epsilon', 'v' (Salimans and Ho 2022) or 'x0'.
        sampler: 'ddim' with `eta` (0 is deterministic, 1 ancestral), 'ddpm', which is DDIM with eta 1, or
            'dpm_solver', DPM-Solver++(2M): deterministic, of second order.
        eta: share of the ancestral noise that DDIM adds.
        train_steps: number of training steps; times are t = (step + 1) / train_steps.
        beta_start: first beta of the scaled-linear schedule.
        beta_end: last beta of the scaled-linear schedule.
        start_time: 1 starts from noise; below 1 from the degraded latent, noised to that time.
    """

    parameterisation: Parameterisation = "epsilon"
    sampler: Sampler = "ddim"
    eta: float = 0.0
    train_steps: int = 1000
    beta_start: float = 0.0015
    beta_end: float = 0.0195
    start_time: float = 1.0
    alpha_bar: torch.Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.parameterisation not in ("epsilon", "v", "x0"):
            raise ValueError(f"parameterisation must be 'epsilon', 'v' or 'x0', not '{self.parameterisation}'")
        if self.sampler not in ("ddim", "ddpm", "dpm_solver"):
            raise ValueError(f"sampler must be 'ddim', 'ddpm' or 'dpm_solver', not '{self.sampler}'")
        if not 0 <= self.eta <= 1 or (self.eta > 0 and self.sampler == "dpm_solver"):
            raise ValueError(f"eta must be between 0 and 1, and 0 with sampler 'dpm_solver', not {self.eta}")
        if not 1 / self.train_steps <= self.start_time <= 1:
            raise ValueError(f"start_time must be between {1 / self.train_steps:g} and 1, not {self.start_time}")
        betas = torch.linspace(self.beta_start**0.5, self.beta_end**0.5, self.train_steps, dtype=torch.float64) ** 2
        # Index 0 is the clean latent, index n the latent after training step n.
        alpha_bar = torch.cat([torch.ones(1, dtype=torch.float64), torch.cumprod(1 - betas, 0)])
        object.__setattr__(self, "alpha_bar", alpha_bar)

    @property
    def method(self) -> str:
        """The sampler, with its eta and start time where they are not the usual ones."""
        eta = f", eta {self.eta:g}" if self.eta else ""
        return self.sampler + eta + (f", start_time {self.start_time:g}" if self.start_time < 1 else "")

    @property
    def most_steps(self) -> int:
        """As many as there are training steps up to start_time: more would come to some of them twice."""
        return int(self.start_time * self.train_steps + 1e-9)  # 0.29 * 100 is below 29

    def sample_times(self, batch: int, *, generator: torch.Generator | None = None) -> torch.Tensor:
        """Draw training times (batch,), uniform over the training steps."""
        return torch.randint(1, self.train_steps + 1, (batch,), generator=generator) / self.train_steps

    def corrupt(
        self, clean: torch.Tensor, degraded: torch.Tensor, t: torch.Tensor, noise: torch.Tensor, spread: torch.Tensor
    ) -> torch.Tensor:
        """Return the latent at time t; degraded and spread play no part."""
        signal, deviation = self._levels(t, clean)
        return signal * clean + deviation * noise

    def target(
        self, clean: torch.Tensor, degraded: torch.Tensor, t: torch.Tensor, noise: torch.Tensor, spread: torch.Tensor
    ) -> torch.Tensor:
        """Return noise, v = sqrt(abar) noise - sqrt(1 - abar) clean, or the clean latent."""
        signal, deviation = self._levels(t, clean)
        return {"epsilon": noise, "v": signal * noise - deviation * clean, "x0": clean}[self.parameterisation]

    def to_clean(
        self,
        prediction: torch.Tensor,
        z_t: torch.Tensor,
        degraded: torch.Tensor,
        t: torch.Tensor,
        spread: torch.Tensor,
    ) -> torch.Tensor:
        """Return the clean latent that a prediction stands for; never clamped."""
        signal, deviation = self._levels(t, z_t)
        if self.parameterisation == "epsilon":
            return (z_t - deviation * prediction) / signal
        if self.parameterisation == "v":
            return signal * z_t - deviation * prediction
        return prediction

    def restore(self, predict: Predict, degraded: torch.Tensor, spread: torch.Tensor) -> torch.Tensor:
        """Return the clean latent predicted from the degraded one at half time, no noise drawn.

        At t = 1 an epsilon prediction would be divided by sqrt(abar) of about 0.01.
        """
        t = torch.full((degraded.shape[0],), min(self.start_time, 0.5), device=degraded.device)
        z_t = self._levels(t, degraded)[0] * degraded
        return self.to_clean(predict(z_t, t), z_t, degraded, t, spread)

    def start(self, degraded: torch.Tensor, noise: Noise) -> State:
        """Return noise at start_time, and with it the degraded latent where that is below 1."""
        first = torch.full((degraded.shape[0],), self.start_time, device=degraded.device)
        signal, deviation = self._levels(first, degraded)
        return (deviation * noise(0) + (signal * degraded if self.start_time < 1 else 0.0),)

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
        """Go to the next of `steps` times, spaced evenly from start_time to 0; DPM-Solver++ keeps `clean`, too."""
        times = torch.linspace(self.start_time, 0.0, steps + 1, dtype=torch.float64).tolist()
        z_t, (now, then) = state[0], times[step : step + 2]
        t = torch.full((degraded.shape[0],), now, device=degraded.device)
        clean = self.to_clean(predict(z_t, t), z_t, degraded, t, spread)
        if self.sampler == "dpm_solver":
            before = (times[step - 1], state[1]) if step else None
            return self._multistep(z_t, clean, now, then, before), clean
        eta = 1.0 if self.sampler == "ddpm" else self.eta
        return (self._step(z_t, clean, now, then, eta, noise(step + 1) if eta > 0 and then > 0 else None),)

    def _multistep(
        self,
        z_t: torch.Tensor,
        clean: torch.Tensor,
        now: float,
        then: float,
        before: tuple[float, torch.Tensor] | None,
    ) -> torch.Tensor:
        """Lu et al. 2022, algorithm 2 (2M): `before` is the time and clean latent of the step before, if any.

        With lambda = log(signal / deviation), h the step in it and r the last step over this one, the clean latent
        is extrapolated, D = (1 + 1 / (2 r)) clean - 1 / (2 r) before, and z = (dev' / dev) z - signal' (e^-h - 1) D.
        The last step is of first order: lambda is infinite at the clean end.
        """
        if then == 0:
            return clean
        (signal, deviation), (signal_then, deviation_then) = self._numbers(now), self._numbers(then)
        h = math.log(signal_then / deviation_then) - math.log(signal / deviation)
        if before is not None:
            signal_before, deviation_before = self._numbers(before[0])
            last = math.log(signal / deviation) - math.log(signal_before / deviation_before)
            weight = h / (2 * last)  # 1 / (2 r)
            clean = (1 + weight) * clean - weight * before[1]
        return (deviation_then / deviation) * z_t - signal_then * math.expm1(-h) * clean

    def _step(
        self,
        z_t: torch.Tensor,
        clean: torch.Tensor,
        now: float,
        then: float,
        eta: float,
        noise: torch.Tensor | None,
    ) -> torch.Tensor:
        """Song et al. 2021, equations 12 and 16, with the previous alpha_bar looked up at `then`."""
        abar, previous = float(self._alpha_bar(now)), float(self._alpha_bar(then))
        epsilon = (z_t - abar**0.5 * clean) / (1 - abar) ** 0.5
        sigma = eta * ((1 - previous) / (1 - abar)) ** 0.5 * (1 - abar / previous) ** 0.5
        direction = max(1 - previous - sigma**2, 0.0) ** 0.5
        z_s = previous**0.5 * clean + direction * epsilon
        return z_s if noise is None else z_s + sigma * noise

    def _numbers(self, t: float) -> tuple[float, float]:
        """sqrt(abar) and sqrt(1 - abar) of one time."""
        abar = float(self._alpha_bar(t))
        return abar**0.5, (1 - abar) ** 0.5

    def _alpha_bar(self, t: float | torch.Tensor) -> torch.Tensor:
        index = torch.as_tensor(t, dtype=torch.float64) * self.train_steps
        return self.alpha_bar.to(index.device)[index.round().long()]

    def _levels(self, t: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """sqrt(abar) and sqrt(1 - abar), shaped to broadcast against `like`."""
        abar = self._alpha_bar(t).to(like.device)
        return per_sample(abar.sqrt(), like), per_sample((1 - abar).sqrt(), like)
