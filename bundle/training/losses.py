"""Loss terms, all in units of 1 HU / SCALE_HU so that weights compare."""

import torch

SCALE_HU = 20.0  # a typical noise level: losses are about 1 for an untrained network
_CHARBONNIER_HU = 5.0  # where the Charbonnier loss turns from quadratic to linear

LOSS_TERMS = ("refined", "unrefined", "target", "reconstruction", "kl")


def charbonnier(difference_hu: torch.Tensor) -> torch.Tensor:
    """Mean of sqrt(d^2 + e^2) - e (Charbonnier et al. 1994): L1 that is smooth at zero, of HU differences."""
    return ((difference_hu.square() + _CHARBONNIER_HU**2).sqrt() - _CHARBONNIER_HU).mean() / SCALE_HU


def kl_divergence(mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """Mean over latent values of KL(N(mean, std^2) || N(0, 1)) (Kingma and Welling 2014, appendix B)."""
    variance = std.square()
    return 0.5 * (mean.square() + variance - 1 - variance.clamp_min(1.0e-30).log()).mean()
