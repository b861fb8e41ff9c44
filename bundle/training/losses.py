"""Loss terms, all in units of 1 HU / SCALE_HU so that weights compare."""

import torch

SCALE_HU = 20.0  # a typical noise level: losses are about 1 for an untrained network
LEAST_NOISE_HU = 2.0  # a scan of less noise than this must not outweigh all others
_CHARBONNIER_HU = 5.0  # where the Charbonnier loss turns from quadratic to linear
LOSS_CORNER = 3.0  # the same in units of the noise

LOSS_TERMS = ("refined", "unrefined", "target", "reconstruction", "kl", "adversarial", "perceptual")


def charbonnier(difference_hu: torch.Tensor) -> torch.Tensor:
    """Mean of sqrt(d^2 + e^2) - e (Charbonnier et al. 1994): L1 that is smooth at zero, of HU differences."""
    return ((difference_hu.square() + _CHARBONNIER_HU**2).sqrt() - _CHARBONNIER_HU).mean() / SCALE_HU


def noise_relative_charbonnier(
    difference_hu: torch.Tensor, noise_hu: torch.Tensor, *, corner: float = LOSS_CORNER, noisy_weight: float = 0.0
) -> torch.Tensor:
    """Charbonnier loss of differences in units of the noise, quadratic up to `corner` times the noise.

    A head at 5 HU of noise weighs as much as a chest at 50, and nearly all differences lie in the quadratic part,
    edges among them, whose minimum is the mean: what PSNR and an unbiased HU value ask for.

    Args:
        difference_hu: (B, 1, H, W, D).
        noise_hu: noise level of the input per slice, (B, D).
        corner: in units of the noise; beyond, the loss is linear, so that metal does not outweigh all else.
        noisy_weight: a slice counts (noise / SCALE_HU) to this power: 0, all scans alike; 2, all HU alike.
    """
    noise_hu = noise_hu.clamp_min(LEAST_NOISE_HU)[:, None, None, None, :]
    per_voxel = corner**2 * (((difference_hu / noise_hu / corner).square() + 1.0).sqrt() - 1.0)
    return (per_voxel * (noise_hu / SCALE_HU) ** noisy_weight).mean()


def kl_divergence(mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """Mean over latent values of KL(N(mean, std^2) || N(0, 1)) (Kingma and Welling 2014, appendix B)."""
    variance = std.square()
    return 0.5 * (mean.square() + variance - 1 - variance.clamp_min(1.0e-30).log()).mean()
