"""The networks that ours is compared with: RED-CNN and a plain residual 3D U-Net. HU in, HU out."""

import itertools
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from bundle.errors import BundleError
from bundle.networks.layout import from_slices_first, to_slices_first, use_slices_first
from bundle.networks.norm import drop_norms

_LOWEST_HU = -1024.0
_RANGE_HU = 4096.0


class RedCnn(nn.Module):
    """RED-CNN (Chen et al., IEEE Trans. Med. Imaging 36, 2017): ten layers of 5 x 5, 96 channels, slice by slice.

    As published, values [-1024, 3072] HU become [0, 1]; only the last ReLU is left out, because it would cut off
    what lies below -1024 HU (noise in air).
    """

    multiple = 1

    def __init__(self, channels: int = 96) -> None:
        super().__init__()
        sizes = [1, *[channels] * 5]
        pairs = list(itertools.pairwise(sizes))
        self.down = nn.ModuleList(nn.Conv2d(a, b, 5) for a, b in pairs)
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 5) for a, b in reversed(pairs))

    def forward(self, volume_hu: torch.Tensor) -> torch.Tensor:
        """Return restored HU (B, 1, H, W, D)."""
        batch, _, height, width, depth = volume_hu.shape
        slices = volume_hu.permute(0, 4, 1, 2, 3).reshape(batch * depth, 1, height, width)
        scaled = (slices - _LOWEST_HU) / _RANGE_HU
        kept, x = [], scaled
        for number, layer in enumerate(self.down):
            if number % 2 == 0:
                kept.append(x)
            x = functional.relu(layer(x))
        for number, layer in enumerate(self.up):
            x = layer(x)
            if number % 2 == 0:
                x = x + kept.pop()
            if number < len(self.up) - 1:
                x = functional.relu(x)
        restored = slices + (x.float() - scaled) * _RANGE_HU  # the same number with fewer roundings
        return restored.reshape(batch, depth, 1, height, width).permute(0, 2, 3, 4, 1)


class ResidualUNet3d(nn.Module):
    """A 3D U-Net of three levels (MONAI's DynUNet without norms, halving in plane only) that predicts the noise."""

    def __init__(self, features: tuple[int, ...] = (16, 32, 64)) -> None:
        super().__init__()
        from monai.networks.nets.dynunet import DynUNet

        levels = len(features)
        self.net = DynUNet(
            spatial_dims=3,
            in_channels=1,
            out_channels=1,
            kernel_size=[(3, 3, 3)] * levels,
            strides=[(1, 1, 1)] + [(2, 2, 1)] * (levels - 1),
            upsample_kernel_size=[(2, 2, 1)] * (levels - 1),
            filters=list(features),
            norm_name="instance",
        )
        use_slices_first(drop_norms(self.net))  # statistics of a patch are not those of a slice
        last = self.net.output_block.conv.conv
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.multiple = 2 ** (levels - 1)

    def forward(self, volume_hu: torch.Tensor) -> torch.Tensor:
        """Return restored HU (B, 1, H, W, D)."""
        rows, columns = (-size % self.multiple for size in volume_hu.shape[2:4])
        padded = functional.pad(volume_hu, (0, 0, 0, columns, 0, rows), mode="replicate")
        noise = 50 * from_slices_first(self.net(to_slices_first(padded / 250))).float()  # about 1 within the network
        return volume_hu + noise[:, :, : volume_hu.shape[2], : volume_hu.shape[3]]


NETWORKS: dict[str, Callable[[], nn.Module]] = {"redcnn": RedCnn, "unet3d": ResidualUNet3d}
DEFINITIONS = {
    "redcnn": "RED-CNN, 10 layers, 96 channels, trained on the same data",
    "unet3d": "plain residual 3D U-Net (16, 32, 64), trained on the same data",
}


def build_baseline(name: str) -> nn.Module:
    """Return a baseline network with fresh weights.

    Raises:
        BundleError: for an unknown name.
    """
    if name not in NETWORKS:
        raise BundleError(f"baseline network '{name}' is unknown", hint=f"use one of {', '.join(NETWORKS)}")
    return NETWORKS[name]()
