"""Slices outermost inside the networks, for speed; everywhere else volumes are (B, C, H, W, D).

A convolution on a processor runs along the innermost axis. With a handful of slices there it is several
times slower than along a row of pixels. So the networks work on (B, C, D, H, W), channels last in
memory. Weights keep the order H, W, D, in which every version of this bundle stores them.
"""

import torch
from torch import nn
from torch.nn import functional

_ENOUGH_FOR_ONEDNN = 20480  # of torch's own rule, aten/src/ATen/native/Convolution.cpp, use_mkldnn


def to_slices_first(x: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W, D) to (B, C, D, H, W), channels last in memory."""
    return x.permute(0, 1, 4, 2, 3).contiguous(memory_format=torch.channels_last_3d)


def from_slices_first(x: torch.Tensor) -> torch.Tensor:
    """(B, C, D, H, W) to (B, C, H, W, D), a view."""
    return x.permute(0, 1, 3, 4, 2)


class _Convolution(nn.Conv3d):
    """On (B, C, D, H, W) with weights (O, I, kH, kW, kD)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return convolve(self, x, self.bias)


class _TransposedConvolution(nn.ConvTranspose3d):
    """On (B, C, D, H, W) with weights (I, O, kH, kW, kD)."""

    def forward(self, x: torch.Tensor, output_size: list[int] | None = None) -> torch.Tensor:
        assert output_size is None
        return convolve(self, x, self.bias)


def convolve(conv: nn.Conv3d | nn.ConvTranspose3d, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Apply a convolution with weights in the order H, W, D to x (B, C, D, H, W)."""
    weight = conv.weight.permute(0, 1, 4, 2, 3)
    assert not isinstance(conv.padding, str)
    stride, padding = _slices_first(conv.stride), _slices_first(conv.padding)
    dilation = _slices_first(conv.dilation)
    if isinstance(conv, nn.ConvTranspose3d):
        extra = _slices_first(conv.output_padding)
        return functional.conv_transpose3d(x, weight, bias, stride, padding, extra, conv.groups, dilation)
    if _torch_would_be_slow(x):
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype  # unknown to autocast
        bias = None if bias is None else bias.to(dtype)
        return torch.mkldnn_convolution(x.to(dtype), weight.to(dtype), bias, padding, stride, dilation, conv.groups)
    return functional.conv3d(x, weight, bias, stride, padding, dilation, conv.groups)


def _torch_would_be_slow(x: torch.Tensor) -> bool:
    """Whether torch would leave oneDNN aside: it judges the size of one sample by its first two axes only.

    For few slices it so takes a slower path. Inference only: graphs and gradients keep torch's way.
    """
    plain = x.device.type == "cpu" and x.dtype is torch.float32 and torch.backends.mkldnn.is_available()
    recorded = torch.is_grad_enabled() or torch.jit.is_tracing() or torch.compiler.is_compiling()
    return plain and not recorded and len(x) == 1 and x[0, :, :, :, 0].numel() <= _ENOUGH_FOR_ONEDNN


def use_slices_first(net: nn.Module) -> nn.Module:
    """Make every convolution of `net`, in place, work on (B, C, D, H, W), and return it; names of weights stay."""
    for module in net.modules():
        if type(module) is nn.Conv3d:
            module.__class__ = _Convolution
        elif type(module) is nn.ConvTranspose3d:
            module.__class__ = _TransposedConvolution
        elif hasattr(module, "slices_first"):
            setattr(module, "slices_first", True)  # noqa: B010 # a plain attribute, not one of nn.Module's
    return net


def _slices_first(values: tuple[int, ...]) -> tuple[int, int, int]:
    rows, columns, slices = values
    return slices, rows, columns
