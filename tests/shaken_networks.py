"""Networks of tests."""

import torch

from bundle.networks.presets import build_restorer


def shaken(**options):
    """A network whose weights are far from their start, so that every convolution sees its neighbours."""
    torch.manual_seed(0)
    restorer = build_restorer("tiny", **options).eval()
    with torch.no_grad():
        for part in (restorer.autoencoder, restorer.denoiser, restorer.refiner):
            for parameter in part.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
    return restorer
