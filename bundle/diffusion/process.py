"""What every diffusion process offers to training and to restoration.

Shapes: latents are (B, L, h, w, D); times t are (B,) in [0, 1], 0 = clean; `spread` broadcasts against a latent
and is the standard deviation of degraded minus clean latents (only the bridge uses it).
"""

from collections.abc import Callable
from typing import Protocol

import torch

# (z_t, t) -> the network's raw prediction, of z_t's shape.
Predict = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
# step number -> standard normal noise of the latent's shape; a function, so that noise can be tied to positions.
Noise = Callable[[int], torch.Tensor]
# What a sampler takes from one step to the next: the latent first, and what else its method needs.
State = tuple[torch.Tensor, ...]


class DiffusionProcess(Protocol):
    """A forward process with a known inverse, given a prediction."""

    @property
    def method(self) -> str:
        """Which sampler, with everything but the number of steps that decides how it draws."""

    @property
    def most_steps(self) -> int:
        """How many steps `sample` can take."""

    def sample_times(self, batch: int, *, generator: torch.Generator | None = None) -> torch.Tensor:
        """Draw training times (batch,)."""

    def corrupt(
        self, clean: torch.Tensor, degraded: torch.Tensor, t: torch.Tensor, noise: torch.Tensor, spread: torch.Tensor
    ) -> torch.Tensor:
        """Return the latent at time t."""

    def target(
        self, clean: torch.Tensor, degraded: torch.Tensor, t: torch.Tensor, noise: torch.Tensor, spread: torch.Tensor
    ) -> torch.Tensor:
        """Return what a perfect network would predict."""

    def to_clean(
        self,
        prediction: torch.Tensor,
        z_t: torch.Tensor,
        degraded: torch.Tensor,
        t: torch.Tensor,
        spread: torch.Tensor,
    ) -> torch.Tensor:
        """Return the clean latent that a prediction stands for."""

    def restore(self, predict: Predict, degraded: torch.Tensor, spread: torch.Tensor) -> torch.Tensor:
        """Return the deterministic one-step restoration."""

    def start(self, degraded: torch.Tensor, noise: Noise) -> State:
        """Return what sampling starts from."""

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
        """Return the state after step number `step`, from 0, of `steps`: after the last one, the clean latent first."""

    def sample(
        self, predict: Predict, degraded: torch.Tensor, spread: torch.Tensor, *, steps: int, noise: Noise
    ) -> torch.Tensor:
        """Draw a clean latent in `steps` evaluations of `predict`."""
        return self.run(predict, (), degraded, spread, part=range(steps), steps=steps, noise=noise)[0]

    def run(
        self,
        predict: Predict,
        state: State,
        degraded: torch.Tensor,
        spread: torch.Tensor,
        *,
        part: range,
        steps: int,
        noise: Noise,
    ) -> State:
        """Return the state after the steps in `part`; `state` is that before them, of no meaning before the first."""
        check_steps(steps, most=self.most_steps)
        if part.start == 0:
            state = self.start(degraded, noise)
        for step in part:
            state = self.advance(predict, state, degraded, spread, step=step, steps=steps, noise=noise)
        return state


def per_sample(t: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Reshape times (B,) so that they broadcast against a latent."""
    return t.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))


def check_steps(steps: int, *, most: int) -> None:
    """Refuse a number of steps that no sampler can take.

    Raises:
        ValueError: naming the key and its range.
    """
    if not 1 <= steps <= most:
        raise ValueError(f"steps must be between 1 and {most}, not {steps}")
