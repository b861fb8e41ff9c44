"""Slices outermost inside the networks, for speed; everywhere else volumes are (B, C, H, W, D).

A convolution on a processor runs along the innermost axis. With a handful of slices there it is several
times slower than along a row of pixels. So the networks work on (B, C, D, H, W), channels last in
memory. Weights keep the order H, W, D, in which every version of this bundle stores them.
"""

import functools
from collections.abc import Callable
from typing import cast

import torch
from torch import nn
from torch._subclasses import FakeTensor
from torch.nn import functional
from torch.overrides import handle_torch_function, has_torch_function_unary

from bundle.networks.slice_stream import SliceStream

_ENOUGH_FOR_ONEDNN = 20480  # of torch's own rule, aten/src/ATen/native/Convolution.cpp, use_mkldnn


def to_slices_first(x: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W, D) to (B, C, D, H, W), channels last in memory."""
    return x.permute(0, 1, 4, 2, 3).contiguous(memory_format=torch.channels_last_3d)


def from_slices_first(x: torch.Tensor) -> torch.Tensor:
    """(B, C, D, H, W) to (B, C, H, W, D), a view."""
    return x.permute(0, 1, 3, 4, 2)


def each_slice(x: torch.Tensor, function: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Apply a function of (N, C, H, W), which keeps samples apart and this shape, to every slice of (B, C, D, H, W)."""
    if has_torch_function_unary(x):  # a stream of slices takes it for one operation
        return cast(torch.Tensor, handle_torch_function(each_slice, (x,), x, function))
    samples = function(x.transpose(1, 2).flatten(0, 1))
    return samples.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)


def compact(x: torch.Tensor) -> torch.Tensor:
    """In the number format that a convolution under autocast reads, so that what comes before it moves less memory."""
    return x.to(autocast_format(x.device.type) or x.dtype)


def autocast_format(kind: str) -> torch.dtype | None:
    """Number format of autocast on devices of that kind; None where it is off or there is none."""
    mixed = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if mixed else None


def space_to_depth(x: torch.Tensor, factor: int) -> torch.Tensor:
    """(B, C, D, H, W) to (B, f*f*C, D, H/f, W/f), channels last in memory: the pixels of a block row by row."""
    height, width = x.shape[3] // factor, x.shape[4] // factor
    blocks = x.permute(0, 2, 3, 4, 1).unflatten(3, (width, factor)).unflatten(2, (height, factor))
    return blocks.permute(0, 1, 2, 4, 3, 5, 6).flatten(4).permute(0, 4, 1, 2, 3)  # B, D, H/f, W/f, f, f, C before


def depth_to_space(x: torch.Tensor, factor: int) -> torch.Tensor:
    """(B, f*f*C, D, h, w) to (B, C, D, h*f, w*f): the inverse of `space_to_depth`."""
    blocks = x.permute(0, 2, 3, 4, 1).unflatten(4, (factor, factor, x.shape[1] // factor**2))
    return blocks.permute(0, 1, 2, 4, 3, 5, 6).flatten(4, 5).flatten(2, 3).permute(0, 4, 1, 2, 3)


class Convolution(nn.Conv3d):
    """On (B, C, D, H, W) with weights (O, I, kH, kW, kD); with a slope, a leaky ReLU follows."""

    slope: float | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, D, H, W) to the same order."""
        return convolve(self, x, self.bias, slope=self.slope)


class _TransposedConvolution(nn.ConvTranspose3d):
    """On (B, C, D, H, W) with weights (I, O, kH, kW, kD)."""

    def forward(self, x: torch.Tensor, output_size: list[int] | None = None) -> torch.Tensor:
        assert output_size is None
        return convolve(self, x, self.bias)


def convolve(
    conv: nn.Conv3d | nn.ConvTranspose3d, x: torch.Tensor, bias: torch.Tensor | None, *, slope: float | None = None
) -> torch.Tensor:
    """Apply a convolution with weights in the order H, W, D to x (B, C, D, H, W), and a leaky ReLU where asked for."""
    weight = conv.weight.permute(0, 1, 4, 2, 3)
    assert not isinstance(conv.padding, str)
    stride, padding = _slices_first(conv.stride), _slices_first(conv.padding)
    dilation = _slices_first(conv.dilation)
    if _is_one_slice(x) and 2 * padding[0] + 1 == weight.shape[2] and dilation[0] == 1:
        # All else meets zeros. In bfloat16 with AMX oneDNN gives garbage for it (torch 2.13: of 1, 3 or 13 channels).
        weight, padding = weight[:, :, padding[0] : padding[0] + 1], (0, *padding[1:])
    if isinstance(conv, nn.ConvTranspose3d):
        extra = _slices_first(conv.output_padding)
        return functional.conv_transpose3d(x, weight, bias, stride, padding, extra, conv.groups, dilation)
    if only_computes(x) and (slope is not None or _torch_would_be_slow(x)):
        dtype = autocast_format("cpu") or x.dtype  # these operations are unknown to autocast
        bias = None if bias is None else bias.to(dtype)
        given = (x.to(dtype), weight.to(dtype), bias, padding, stride, dilation, conv.groups)
        if slope is None:
            return torch.mkldnn_convolution(*given)
        # In one pass over memory: alone, the activation takes half of the convolution's time.
        activated: torch.Tensor = torch.ops.mkldnn._convolution_pointwise(*given, "leaky_relu", [slope], "")
        return activated
    x = functional.conv3d(x, weight, bias, stride, padding, dilation, conv.groups)
    return x if slope is None else functional.leaky_relu(x, slope, inplace=True)  # no gradient needs what was before


def _is_one_slice(x: torch.Tensor) -> bool:
    """Whether that is all there is: a graph stands for any number, and a stream's slices come one after the other."""
    recorded = torch.jit.is_tracing() or torch.compiler.is_compiling() or isinstance(x, FakeTensor)
    return not recorded and x.shape[2] == 1 and not SliceStream.marked(x)


def only_computes(x: torch.Tensor) -> bool:
    """Whether oneDNN's own operations may be used: on a processor, and for graphs and gradients torch's stay."""
    recorded = torch.is_grad_enabled() or torch.jit.is_tracing() or torch.compiler.is_compiling()
    if x.device.type != "cpu" or recorded or not torch.backends.mkldnn.enabled:
        return False
    return _onednn_computes_in(autocast_format("cpu") or x.dtype)


@functools.cache
def _onednn_computes_in(dtype: torch.dtype) -> bool:
    """Whether this processor can: where it has no bfloat16 torch's own convolutions are slow, and oneDNN's raise."""
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype is torch.float32 or (dtype is torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _torch_would_be_slow(x: torch.Tensor) -> bool:
    """Whether torch would leave oneDNN aside: it judges the size of one sample by its first two axes only."""
    return x.dtype is torch.float32 and len(x) == 1 and x[0, :, :, :, 0].numel() <= _ENOUGH_FOR_ONEDNN


def use_slices_first(net: nn.Module) -> nn.Module:
    """Make every convolution of `net`, in place, work on (B, C, D, H, W), and return it; names of weights stay."""
    for module in net.modules():
        if type(module) is nn.Conv3d:
            module.__class__ = Convolution
        elif type(module) is nn.ConvTranspose3d:
            module.__class__ = _TransposedConvolution
        elif hasattr(module, "slices_first"):
            setattr(module, "slices_first", True)  # noqa: B010 # a plain attribute, not one of nn.Module's
    return net


def _slices_first(values: tuple[int, ...]) -> tuple[int, int, int]:
    rows, columns, slices = values
    return slices, rows, columns
