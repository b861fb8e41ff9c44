"""Slices are never compressed: down- and upsampling that works in the slice plane only.

CT series have slice spacings of 0.5 to 8 mm; halving along that axis would mix anatomy that is centimetres
apart. No constructor argument of monai-generative or MONAI core asks for it, so the resampling modules of a
finished network are exchanged for the ones below, which keep the names of their weights.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from bundle.networks.layout import only_computes

_Maker = Callable[[int], nn.Module]

_DOWNSAMPLERS = {"Downsample", "AEKLDownsample", "DiffusionUnetDownsample"}
_UPSAMPLERS = {"Upsample", "UpSample", "WrappedUpsample"}


class _Convolution(nn.Module):
    """A convolution one level deep, as MONAI's Convolution block names its weights (`.conv.weight`)."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the convolution."""
        return self.conv(x)


class EncoderDownsample(nn.Module):
    """(B, C, H, W, D) to (B, C, H/2, W/2, D): 3x3x3 convolution on a grid padded at the far end, as AutoencoderKL's."""

    slices_first = False  # (B, C, D, H, W) in and out, set by `layout.use_slices_first`

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = _Convolution(nn.Conv3d(channels, channels, 3, stride=(2, 2, 1), padding=(0, 0, 1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Halve rows and columns."""
        return self.conv(functional.pad(x, (0, 1, 0, 1) if self.slices_first else (0, 0, 0, 1, 0, 1)))


class DenoiserDownsample(nn.Module):
    """(B, C, H, W, D) to (B, C, H/2, W/2, D): 3x3x3 convolution padded at both ends, as DiffusionModelUNet's."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = _Convolution(nn.Conv3d(channels, channels, 3, stride=(2, 2, 1), padding=1))

    def forward(self, x: torch.Tensor, emb: torch.Tensor | None = None) -> torch.Tensor:
        """Halve rows and columns; `emb` is part of the block's interface and unused."""
        return self.op(x)


class InPlaneUpsample(nn.Module):
    """(B, C, H, W, D) to (B, C, 2H, 2W, D): nearest neighbours and a 3x3x3 convolution, or its transposed form."""

    slices_first = False
    conv: Any  # _Convolution, whose attributes no type declares

    def __init__(self, channels: int, *, transposed: bool = False) -> None:
        super().__init__()
        self.transposed = transposed
        conv: nn.Module
        if transposed:
            conv = nn.ConvTranspose3d(channels, channels, 3, stride=(2, 2, 1), padding=1, output_padding=(1, 1, 0))
        else:
            conv = nn.Conv3d(channels, channels, 3, padding=1)
        self.conv = _Convolution(conv)

    def forward(self, x: torch.Tensor, emb: torch.Tensor | None = None) -> torch.Tensor:
        """Double rows and columns; `emb` is part of the denoiser block's interface and unused."""
        if self.transposed:
            return self.conv(x)
        if self.slices_first and only_computes(x):
            weight, bias = _of_doubled(self.conv.conv.weight), self.conv.conv.bias
            return functional.conv_transpose3d(x, weight, bias, (1, 2, 2), (1, 1, 1), (0, 0, 0))
        factors = (1.0, 2.0, 2.0) if self.slices_first else (2.0, 2.0, 1.0)
        return self.conv(functional.interpolate(x, scale_factor=factors, mode="nearest"))


def _of_doubled(weight: torch.Tensor) -> torch.Tensor:
    """Transposed weights (I, O, D, 4, 4) of stride 2 that do what (O, I, 3, 3, D) does to doubled rows and columns.

    Each pixel of the result meets two rows and columns of the input in place of three copies: 4 of 9 products.
    """
    # Row of the kernel by row of the transposed one: the copies that a pixel of even and of odd number sees are summed.
    sums = weight.new_tensor([[0, 0, 1, 1], [0, 1, 1, 0], [1, 1, 0, 0]])
    return torch.einsum("oikld,km,ln->iodmn", weight, sums, sums).flip(2)


def make_autoencoder_in_plane(net: nn.Module, *, transposed: bool = False) -> nn.Module:
    """Exchange AutoencoderKL's resampling modules, in place, and return it."""
    return _exchange(net, EncoderDownsample, lambda width: InPlaneUpsample(width, transposed=transposed))


def make_denoiser_in_plane(net: nn.Module) -> nn.Module:
    """Exchange DiffusionModelUNet's resampling modules, in place, and return it."""
    return _exchange(net, DenoiserDownsample, InPlaneUpsample)


def _exchange(net: nn.Module, down: _Maker, up: _Maker) -> nn.Module:
    # A renamed class in a new release must stop the build, not compress slices in silence.
    if _exchange_children(net, down, up) == 0:
        raise RuntimeError("no resampling module was found: this release of the package names them differently")
    return net


def _exchange_children(parent: nn.Module, down: _Maker, up: _Maker) -> int:
    changed = 0
    for name, child in list(parent.named_children()):
        kind = type(child).__name__
        if kind in _DOWNSAMPLERS | _UPSAMPLERS:
            setattr(parent, name, (down if kind in _DOWNSAMPLERS else up)(_width(child)))
            changed += 1
        else:
            changed += _exchange_children(child, down, up)
    return changed


def _width(module: nn.Module) -> int:
    """Channels of the one convolution inside a resampling module."""
    return next(weight.shape[0] for name, weight in module.named_parameters() if name.endswith("conv.weight"))
