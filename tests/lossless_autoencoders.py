"""Autoencoders that lose nothing, and images to see it by."""

import torch
from torch import nn

from bundle.networks.autoencoder import Autoencoder
from bundle.networks.compat import build_autoencoder
from bundle.networks.inplane import make_autoencoder_in_plane
from bundle.networks.lossless import lossless_start
from bundle.networks.norm import drop_norms

PACKAGES = ["generative", "core"]
CHANNELS = {2: (4, 4), 4: (4, 16, 16)}
HU_PER_UNIT = 1000


def bare(channels, *, latent: int, networks_from: str = "generative") -> nn.Module:
    net = build_autoencoder(
        networks_from,
        spatial_dims=3,
        in_channels=1,
        out_channels=1,
        num_res_blocks=(0,) + (1,) * (len(channels) - 1),
        num_channels=channels,
        attention_levels=(False,) * len(channels),
        latent_channels=latent,
        norm_num_groups=1,
        with_encoder_nonlocal_attn=False,
        with_decoder_nonlocal_attn=False,
    )
    return drop_norms(make_autoencoder_in_plane(net, transposed=True))


def lossless(factor: int, *, networks_from: str = "generative", exact_path: bool = True) -> Autoencoder:
    net = lossless_start(bare(CHANNELS[factor], latent=factor**2, networks_from=networks_from), factor=factor)
    return Autoencoder(net, latent_channels=factor**2, factor=factor, exact_path=exact_path).eval()


def images(shape=(2, 1, 16, 24, 3), *, seed: int = 0) -> torch.Tensor:
    """Uniform noise over -1000..3071 HU and some metal, in network units."""
    x = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 4.071 - 1
    x[..., :2, :2, :] = 30.0
    return x
