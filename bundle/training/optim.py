"""The optimizer, its learning rates as a function of the iteration, and the moving average of the weights."""

import copy
import math

import torch
from torch import nn

from bundle.errors import BundleError
from bundle.networks.restorer import Restorer
from bundle.training.phases import Phase


def build_optimizer(
    restorer: Restorer, *, learning_rate: float, weight_decay: float = 0.0, betas: tuple[float, float] = (0.9, 0.99)
) -> torch.optim.AdamW:
    """Return AdamW with one group per part of the networks, created once for all phases.

    Fused: one pass over the weights instead of ten, which with small patches was a sixth of a step's time.
    """
    groups = [{"name": name, "params": parameters} for name, parameters in restorer.groups().items()]
    return torch.optim.AdamW(
        groups, lr=learning_rate, betas=(betas[0], betas[1]), weight_decay=weight_decay, fused=True
    )


SCHEDULES = ("cosine", "linear", "constant")


def schedule(step: int, *, steps: int, warmup: int, final: float, name: str = "cosine") -> float:
    """Linear warm-up, then from 1 to `final` over a phase of `steps`.

    Args:
        step: 0-based, within the phase.
        steps: of the phase.
        warmup: steps of the warm-up, at most a tenth of the phase.
        final: factor at the end.
        name: 'cosine' (half a period; Loshchilov and Hutter 2017), 'linear', or 'constant', which stays at 1.

    Raises:
        BundleError: for an unknown name.
    """
    if name not in SCHEDULES:
        raise BundleError(f"lr_schedule '{name}' is unknown", hint=f"use {', '.join(SCHEDULES)}")
    warmup = min(warmup, max(steps // 10, 1))
    if step < warmup:
        return (step + 1) / warmup
    if name == "constant":
        return 1.0
    progress = min((step - warmup) / max(steps - warmup, 1), 1.0)
    left = 1 - progress if name == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return final + (1 - final) * left


def set_learning_rates(optimizer: torch.optim.Optimizer, *, base: float, phase: Phase, factor: float) -> None:
    """Give each group its rate: base x the phase's multiplier x the schedule's factor; 0 where frozen."""
    for group in optimizer.param_groups:
        group["lr"] = base * phase.multipliers.get(group["name"], 0.0) * factor


def clip_by_group(optimizer: torch.optim.Optimizer, *, most: float) -> float:
    """Clip each group's gradient norm at `most`, apart, so that one part's spike does not slow the others.

    Returns:
        The largest norm before clipping; NaN when one is.
    """
    norms = [float(nn.utils.clip_grad_norm_(group["params"], most)) for group in optimizer.param_groups]
    return math.nan if any(map(math.isnan, norms)) else max(norms)  # max alone would pass over a NaN


class MovingAverage:
    """Exponential moving average of a module's weights, with no state but the weights themselves.

    The decay grows with the number of updates, min(decay, (1 + n) / (10 + n)), so that a short training does not
    remember its random start (as in TensorFlow's ExponentialMovingAverage).
    """

    def __init__(self, module: nn.Module, *, decay: float) -> None:
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, source: nn.Module, *, updates: int) -> None:
        """Move towards `source`; `updates` counts the updates before this one."""
        weight = 1 - min(self.decay, (1 + updates) / (10 + updates))
        for average, current in zip(self.module.parameters(), source.parameters(), strict=True):
            average.lerp_(current, weight)
        for kept, buffer in zip(self.module.buffers(), source.buffers(), strict=True):
            kept.copy_(buffer)
