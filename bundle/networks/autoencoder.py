"""The autoencoder: AutoencoderKL in 3D behind whitened latents, with a start that loses nothing.

Rombach et al. 2022 (arXiv:2112.10752) compress; restoration cannot afford it: a latent with fewer values than
the image adds more error than the noise that is to be removed. With factor f in plane and f*f channels the
weights can be set so that decode(encode(x)) == x before any training (`lossless_start`).
"""

import contextlib
import math
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional

from bundle.networks.inplane import EncoderDownsample, InPlaneUpsample
from bundle.networks.layout import convolve, from_slices_first, to_slices_first, use_slices_first

# exp(-13.8 / 2) = 1e-3 network units = 1 HU: the latent noise of an untrained lossless autoencoder.
_START_LOG_VARIANCE = -13.8


class Autoencoder(nn.Module):
    """AutoencoderKL between network units and latents of zero mean and unit variance per channel.

    Args:
        net: AutoencoderKL (monai-generative's or core's).
        latent_channels: channels of the latent.
        factor: pixels per latent position along a row or column.
        exact_path: keep float32 outside the residual branches under autocast, because bfloat16 rounds -1000 HU
            in steps of 4 HU.
    """

    net: Any  # AutoencoderKL of either package, whose attributes no type declares
    latent_mean: torch.Tensor
    latent_std: torch.Tensor

    def __init__(self, net: nn.Module, *, latent_channels: int, factor: int, exact_path: bool) -> None:
        super().__init__()
        self.net = use_slices_first(net)
        self.latent_channels = latent_channels
        self.factor = factor
        self.exact_path = exact_path
        self.register_buffer("latent_mean", torch.zeros(latent_channels))
        self.register_buffer("latent_std", torch.ones(latent_channels))

    def distribution(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and standard deviation of the raw latent of x (B, C, H, W, D)."""
        x = to_slices_first(x)
        if self.exact_path:
            features = _through(self.net.encoder.blocks, x)
            with full_precision(x):
                log_variance = self.net.quant_conv_log_sigma(features)
                mean = self.net.quant_conv_mu(features)
            std = (log_variance.clamp(-30.0, 20.0) / 2).exp()  # AutoencoderKL's own limits
        else:
            mean, std = (part.float() for part in self.net.encode(x))
        return from_slices_first(mean), from_slices_first(std)

    def decode_raw(self, latent: torch.Tensor) -> torch.Tensor:
        """Return the image (B, 1, H, W, D) of a raw latent."""
        latent = to_slices_first(latent)
        if not self.exact_path:
            return from_slices_first(self.net.decode(latent).float())
        with full_precision(latent):
            features = self.net.post_quant_conv(latent)
        return from_slices_first(_through(self.net.decoder.blocks, features))

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W, D) in network units to the whitened latent (B, L, H/f, W/f, D): the mean, never a draw."""
        return (self.distribution(x)[0] - _channels(self.latent_mean)) / _channels(self.latent_std)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Whitened latent (B, L, H/f, W/f, D) to network units (B, 1, H, W, D)."""
        return self.decode_raw(z * _channels(self.latent_std) + _channels(self.latent_mean))

    def decode_difference(self, z: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """decode(z) - decode(other), whitened latents of one shape to network units (B, 1, H, W, D).

        What follows the last residual branch is linear and takes most of the time: it is applied once, to the
        difference, which is small enough for autocast's number format (0.4 % of a change in HU, not of the HU).
        """
        if not self.exact_path:
            decoded, base = self.decode(torch.cat([z, other])).chunk(2)
            return decoded - base
        blocks = list(self.net.decoder.blocks)
        last = max([-1, *(i for i, block in enumerate(blocks) if hasattr(block, "conv2"))])
        raw = to_slices_first(torch.cat([z, other]) * _channels(self.latent_std) + _channels(self.latent_mean))
        with full_precision(raw):
            features = self.net.post_quant_conv(raw)
        changed, unchanged = _through(blocks[: last + 1], features).chunk(2)
        difference = changed - unchanged
        for block in blocks[last + 1 :]:
            difference = _without_bias(block, difference)
        return from_slices_first(difference.float())

    @torch.no_grad()
    def measure(self, raw_latents: torch.Tensor) -> None:
        """Store mean and standard deviation per channel of raw latents (N, L, ...): the latent's scale factor."""
        per_channel = raw_latents.transpose(0, 1).flatten(1)
        self.latent_mean.copy_(per_channel.mean(1))
        self.latent_std.copy_(per_channel.std(1).clamp_min(1.0e-4))

    def encoder_parameters(self) -> list[nn.Parameter]:
        """Parameters of the group `vae_encoder`."""
        return [p for name, p in self.net.named_parameters() if name.startswith(("encoder.", "quant_conv"))]

    def decoder_parameters(self) -> list[nn.Parameter]:
        """Parameters of the group `vae_decoder`."""
        return [p for name, p in self.net.named_parameters() if name.startswith(("decoder.", "post_quant_conv"))]


def full_precision(x: torch.Tensor) -> contextlib.AbstractContextManager[None]:
    """Return a context without autocast on x's device."""
    kind = x.device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return contextlib.nullcontext()  # nothing to switch off; torch.export writes such a context, and cannot read it
    return torch.autocast(kind, enabled=False)


def _through(blocks: Iterable[Any], x: torch.Tensor) -> torch.Tensor:
    """Apply an encoder's or decoder's blocks: residual branches as autocast says, the path around them in float32."""
    for block in blocks:
        if hasattr(block, "conv2"):
            x = _residual(block, x)
        else:
            with full_precision(x):
                x = block(x)
    return x


def _without_bias(block: Any, x: torch.Tensor) -> torch.Tensor:
    """Apply the linear part of a convolution; its bias stays in the graph, with a gradient of zero, for DDP."""
    if isinstance(block, nn.Identity):
        return x
    conv: Any = block.conv.conv if isinstance(block, InPlaneUpsample) else block.conv
    return convolve(conv, x, 0 * conv.bias)


def _residual(block: Any, x: torch.Tensor) -> torch.Tensor:
    """ResBlock's forward without norms, its shortcut in float32."""
    branch = block.conv2(functional.silu(block.conv1(functional.silu(x))))
    with full_precision(x):
        return block.nin_shortcut(x) + branch.float()


@torch.no_grad()
def lossless_start(net: Any, *, factor: int) -> nn.Module:
    """Set AutoencoderKL's weights, in place, so that decode(encode(x)) == x, with a DCT as the latent's basis.

    Strided convolutions become space-to-depth, transposed ones depth-to-space, residual branches zero; the network
    must have no norms (networks.norm.drop_norms). The latent's channels are the orthonormal cosine transform of
    each f x f block: noise and anatomy separate there, and a denoiser learns where on raw pixels it does not.

    Raises:
        ValueError: when the network has too few channels to hold every value.
    """
    encoder, decoder = net.encoder, net.decoder
    used = 1
    for block in encoder.blocks:
        used = _set_lossless(block, used)
    if used != factor * factor:
        raise ValueError(f"a lossless latent for factor {factor} needs {factor * factor} channels, not {used}")
    for block in decoder.blocks:
        used = _set_lossless(block, used)
    basis = block_cosine_basis(factor)
    _set_pointwise(net.quant_conv_mu, basis)
    _set_pointwise(net.post_quant_conv, basis.T)
    _set_pointwise(net.quant_conv_log_sigma, torch.zeros_like(basis), bias=_START_LOG_VARIANCE)
    return net


def block_cosine_basis(factor: int) -> torch.Tensor:
    """Orthonormal 2D DCT-II of f x f blocks, (f*f, f*f): rows are frequencies, columns space-to-depth channels.

    Space-to-depth by repeated halving numbers the pixel (i, j) of a block by its bits, lowest first.
    """
    stages = int(math.log2(factor))
    assert 2**stages == factor, "the in-plane factor is a power of two"
    position = torch.arange(factor, dtype=torch.float64)
    cosines = torch.cos(math.pi * (position[None, :] + 0.5) * position[:, None] / factor) * math.sqrt(2 / factor)
    cosines[0] /= math.sqrt(2)
    rows, columns = [0], [0]
    for stage in range(stages):
        rows = [i + (a << stage) for i in rows for a in (0, 1) for _ in (0, 1)]
        columns = [j + (b << stage) for j in columns for _ in (0, 1) for b in (0, 1)]
    pairs = [(u, v) for u in range(factor) for v in range(factor)]
    return torch.stack([cosines[u, rows] * cosines[v, columns] for u, v in pairs]).float()


def _set_lossless(block: Any, used: int) -> int:
    """Make one block of the encoder or decoder carry its first `used` channels unchanged; return how many leave."""
    if isinstance(block, EncoderDownsample):
        conv = cast(nn.Conv3d, block.conv.conv)
        _clear(conv)
        _require_channels(conv, 4 * used)
        for channel in range(used):
            for a in (0, 1):
                for b in (0, 1):
                    conv.weight[4 * channel + 2 * a + b, channel, a, b, 1] = 1.0
        return 4 * used
    if isinstance(block, InPlaneUpsample):
        transposed = cast(nn.ConvTranspose3d, block.conv.conv)
        _clear(transposed)
        for channel in range(used // 4):
            for a in (0, 1):
                for b in (0, 1):
                    transposed.weight[4 * channel + 2 * a + b, channel, 1 + a, 1 + b, 1] = 1.0
        return used // 4
    if hasattr(block, "conv2"):
        _clear(block.conv2.conv)
        if hasattr(block.nin_shortcut, "conv"):
            _set_centre(block.nin_shortcut.conv, used)
    elif hasattr(block, "conv"):
        _set_centre(block.conv, used)
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


def _channels(per_channel: torch.Tensor) -> torch.Tensor:
    return per_channel[:, None, None, None]
