"""Weights with which AutoencoderKL loses nothing: decode(encode(x)) == x before any training.

With factor f in plane and f*f channels, strided convolutions can become space-to-depth, transposed ones depth-to-space,
residual branches zero; what is left is a change of basis within blocks of f x f pixels.
"""

import copy
import itertools
import math
from typing import Any, cast

import torch
from torch import nn

from bundle.networks.inplane import EncoderDownsample, InPlaneUpsample

# exp(-13.8 / 2) = 1e-3 network units = 1 HU: the latent noise of an untrained lossless autoencoder.
_START_LOG_VARIANCE = -13.8


@torch.no_grad()
def lossless_start(net: Any, *, factor: int) -> nn.Module:
    """Set AutoencoderKL's weights, in place, so that decode(encode(x)) == x, with a DCT as the latent's basis.

    Strided convolutions become space-to-depth, transposed ones depth-to-space, residual branches zero; the network
    must have no norms (networks.norm.drop_norms). The latent's channels are the orthonormal cosine transform of
    each f x f block: noise and anatomy separate there, and a denoiser learns where on raw pixels it does not.

    Raises:
        ValueError: when the network has too few channels to hold every value, or norms or attention.
    """
    encoder, decoder = net.encoder, net.decoder
    used = 1
    for block in encoder.blocks:
        used = _set_lossless(block, used)
    if used != factor * factor:
        raise ValueError(f"a lossless latent for factor {factor} needs {factor * factor} channels, not {used}")
    for block in decoder.blocks:
        used = _set_lossless(block, used)
    basis = block_cosine_basis(factor)[:, _halving_order(factor)]
    _set_pointwise(net.quant_conv_mu, basis)
    _set_pointwise(net.post_quant_conv, basis.T)
    _set_pointwise(net.quant_conv_log_sigma, torch.zeros_like(basis), bias=_START_LOG_VARIANCE)
    return net


@torch.no_grad()
def is_lossless(net: Any, *, factor: int) -> bool:
    """Whether the weights of AutoencoderKL are those of `lossless_start`; what residual branches begin with is free."""
    try:
        start = lossless_start(copy.deepcopy(net), factor=factor).state_dict()
    except (ValueError, AttributeError, TypeError):  # too few channels, or other blocks
        return False
    return all(torch.equal(value, start[name]) for name, value in net.state_dict().items())


def block_cosine_basis(factor: int) -> torch.Tensor:
    """Orthonormal 2D DCT-II of f x f blocks, (f*f, f*f): rows are frequencies, columns pixels, row by row."""
    position = torch.arange(factor, dtype=torch.float64)
    cosines = torch.cos(math.pi * (position[None, :] + 0.5) * position[:, None] / factor) * math.sqrt(2 / factor)
    cosines[0] /= math.sqrt(2)
    return torch.kron(cosines, cosines).float()


def _halving_order(factor: int) -> list[int]:
    """Number, row by row, of each pixel of a block in the order of space-to-depth by repeated halving.

    It numbers the pixel (i, j) by its bits, lowest first.
    """
    stages = int(math.log2(factor))
    assert 2**stages == factor, "the in-plane factor is a power of two"
    rows, columns = [0], [0]
    for stage in range(stages):
        rows = [i + (a << stage) for i in rows for a in (0, 1) for _ in (0, 1)]
        columns = [j + (b << stage) for j in columns for _ in (0, 1) for b in (0, 1)]
    return [i * factor + j for i, j in zip(rows, columns, strict=True)]


def _set_lossless(block: Any, used: int) -> int:
    """Make one block of the encoder or decoder carry its first `used` channels unchanged; return how many leave."""
    if isinstance(block, EncoderDownsample):
        conv = cast(nn.Conv3d, block.conv.conv)
        _clear(conv)
        _require_channels(conv, 4 * used)
        for channel, a, b in itertools.product(range(used), (0, 1), (0, 1)):
            conv.weight[4 * channel + 2 * a + b, channel, a, b, 1] = 1.0
        return 4 * used
    if isinstance(block, InPlaneUpsample):
        transposed = cast(nn.ConvTranspose3d, block.conv.conv)
        _clear(transposed)
        for channel, a, b in itertools.product(range(used // 4), (0, 1), (0, 1)):
            transposed.weight[4 * channel + 2 * a + b, channel, 1 + a, 1 + b, 1] = 1.0
        return used // 4
    if hasattr(block, "conv2"):
        _clear(block.conv2.conv)
        if hasattr(block.nin_shortcut, "conv"):
            _set_centre(block.nin_shortcut.conv, used)
    elif hasattr(block, "conv"):
        _set_centre(block.conv, used)
    elif not isinstance(block, nn.Identity):
        raise ValueError(f"{type(block).__name__} does not leave its input as it is")
    return used


def _clear(conv: Any) -> None:
    conv.weight.zero_()
    conv.bias.zero_()


def _set_centre(conv: Any, used: int) -> None:
    _clear(conv)
    weight = cast(torch.Tensor, conv.weight)
    centre = weight.shape[-1] // 2
    _require_channels(conv, used)
    for channel in range(used):
        weight[channel, channel, centre, centre, centre] = 1.0


def _require_channels(conv: Any, used: int) -> None:
    fewest = min(conv.weight.shape[:2])
    if used > fewest:
        raise ValueError(f"{fewest} channels cannot carry {used} without loss")


def _set_pointwise(block: Any, matrix: torch.Tensor, *, bias: float = 0.0) -> None:
    block.conv.weight.copy_(matrix[:, :, None, None, None])
    block.conv.bias.fill_(bias)
