"""Networks of tests that change every voxel, as a trained one does and a new one does not."""

import torch

from bundle.networks.presets import build_restorer

PARTS = ("autoencoder", "denoiser", "refiner")


def shaken(parts=PARTS, *, preset="tiny", **options):
    """A network whose weights, in these parts, are far from their start: every convolution sees its neighbours."""
    torch.manual_seed(0)
    restorer = build_restorer(preset, **options).eval()
    with torch.no_grad():
        for part in parts:
            for parameter in getattr(restorer, part).parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
    return restorer
