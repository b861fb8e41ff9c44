"""The noise estimate of `bundle.metrics.noise` as tensor operations.

A network that is traced or exported must hold the estimate as part of its graph: through NumPy it would become a
constant, the noise of the example that was traced. Masks are sorted past the end instead of indexed away, so that no
shape depends on values.
"""

import torch
from torch.nn import functional

from bundle.metrics.noise import CELL, FLOOR_HU, GAUSSIAN_MAD, MIN_CELLS, SMOOTH_FRACTION, SOFT_HU, STEP


def noise_level(volume_hu: torch.Tensor) -> torch.Tensor:
    """Noise standard deviation of every slice in HU, (B, D), as `bundle.metrics.noise.noise_level` measures it.

    Args:
        volume_hu: (B, 1, H, W, D) HU.
    """
    slices = volume_hu[:, 0].detach().float().movedim(-1, 1)  # (B, D, H, W)
    if min(slices.shape[-2:]) < 2 * STEP + CELL:
        return torch.full_like(slices[..., 0, 0], FLOOR_HU)
    means = functional.avg_pool2d(slices[..., STEP:-STEP, STEP:-STEP], CELL)
    chosen = _smooth_cells(means)
    kept = chosen.repeat_interleave(CELL, dim=-2).repeat_interleave(CELL, dim=-1)
    detail = _detail(slices)[..., : kept.shape[-2], : kept.shape[-1]].abs()
    level = GAUSSIAN_MAD * _masked_quantile(detail.flatten(-2), kept.flatten(-2), 0.5)
    return torch.where(level.isfinite(), level.clamp_min(FLOOR_HU), torch.full_like(level, FLOOR_HU))


def _detail(slices: torch.Tensor) -> torch.Tensor:
    """Second difference along rows and columns, scaled to keep the standard deviation of white noise."""
    rows = slices[..., STEP:-STEP, :] - 0.5 * (slices[..., : -2 * STEP, :] + slices[..., 2 * STEP :, :])
    return (rows[..., STEP:-STEP] - 0.5 * (rows[..., : -2 * STEP] + rows[..., 2 * STEP :])) * (2 / 3)


def _smooth_cells(means: torch.Tensor) -> torch.Tensor:
    """The smoother half of soft tissue, or of everything without any: bool, as `means`."""
    down, right = means.diff(dim=-2).abs(), means.diff(dim=-1).abs()
    step = functional.pad(down, (0, 0, 1, 0)).maximum(functional.pad(down, (0, 0, 0, 1)))
    step = step.maximum(functional.pad(right, (1, 0))).maximum(functional.pad(right, (0, 1)))
    soft = (means > SOFT_HU[0]) & (means < SOFT_HU[1])
    soft = soft | (soft.sum(dim=(-2, -1), keepdim=True) < MIN_CELLS)
    limit = _masked_quantile(step.flatten(-2), soft.flatten(-2), SMOOTH_FRACTION)
    return soft & (step <= limit[..., None, None])


def _masked_quantile(values: torch.Tensor, mask: torch.Tensor, fraction: float) -> torch.Tensor:
    """Quantile over the last axis of the values where `mask` is set, linear between neighbours, as numpy.quantile."""
    ordered = values.masked_fill(~mask, torch.inf).sort(dim=-1).values
    place = fraction * (mask.sum(dim=-1, keepdim=True) - 1).clamp_min(0).to(values.dtype)
    low, high = ordered.gather(-1, place.floor().long()), ordered.gather(-1, place.ceil().long())
    return torch.where(low == high, low, low + (high - low) * (place - place.floor())).squeeze(-1)
