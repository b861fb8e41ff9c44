"""The autoencoder: AutoencoderKL in 3D behind whitened latents.

Rombach et al. 2022 (arXiv:2112.10752) compress; restoration cannot afford it: a latent with fewer values than
the image adds more error than the noise that is to be removed (`networks.lossless`).
"""

import contextlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch._subclasses import FakeTensor
from torch.nn import functional

from bundle.networks.inplane import InPlaneUpsample
from bundle.networks.layout import (
    autocast_format,
    convolve,
    depth_to_space,
    from_slices_first,
    space_to_depth,
    to_slices_first,
    use_slices_first,
)
from bundle.networks.lossless import block_cosine_basis, is_lossless


class Autoencoder(nn.Module):
    """AutoencoderKL between network units and latents of zero mean and unit variance per channel.

    Args:
        net: AutoencoderKL (monai-generative's or core's).
        latent_channels: channels of the latent.
        factor: pixels per latent position along a row or column.
        exact_path: keep float32 outside the residual branches under autocast, because bfloat16 rounds -1000 HU
            in steps of 4 HU.

    As long as the weights are those of `lossless_start` and do not learn, all that the network does is a change of
    basis in blocks of pixels. That is then what is computed, with the same result in a fraction of the time.
    """

    net: Any  # AutoencoderKL of either package, whose attributes no type declares
    latent_mean: torch.Tensor
    latent_std: torch.Tensor
    _basis: torch.Tensor

    def __init__(self, net: nn.Module, *, latent_channels: int, factor: int, exact_path: bool) -> None:
        super().__init__()
        self.net = use_slices_first(net)
        self.latent_channels = latent_channels
        self.factor = factor
        self.exact_path = exact_path
        self.register_buffer("latent_mean", torch.zeros(latent_channels))
        self.register_buffer("latent_std", torch.ones(latent_channels))
        self.register_buffer("_basis", block_cosine_basis(factor), persistent=False)
        # One object, which copies of this module share as they share the weights (networks.acceleration).
        self._found: dict[str, Any] = {"weights": [], "lossless": False}
        self.register_load_state_dict_post_hook(_look_again)

    def distribution(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and standard deviation of the raw latent of x (B, C, H, W, D)."""
        self._learns()
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
        self._learns()
        latent = to_slices_first(latent)
        if not self.exact_path:
            return from_slices_first(self.net.decode(latent).float())
        with full_precision(latent):
            features = self.net.post_quant_conv(latent)
        return from_slices_first(_through(self.net.decoder.blocks, features))

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W, D) in network units to the whitened latent (B, L, H/f, W/f, D): the mean, never a draw."""
        if self.only_changes_basis():
            matrix = self._basis / self.latent_std[:, None]
            blocks = space_to_depth(to_slices_first(x), self.factor)
            return from_slices_first(_pointwise(blocks, matrix, -self.latent_mean / self.latent_std))
        return (self.distribution(x)[0] - _channels(self.latent_mean)) / _channels(self.latent_std)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Whitened latent (B, L, H/f, W/f, D) to network units (B, 1, H, W, D)."""
        if self.only_changes_basis():
            return self._from_basis(z, (self._basis * self.latent_mean[:, None]).sum(0))  # no product: autocast rounds
        return self.decode_raw(z * _channels(self.latent_std) + _channels(self.latent_mean))

    def decode_difference(self, z: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """decode(z) - decode(other), whitened latents of one shape to network units (B, 1, H, W, D).

        What follows the last residual branch is linear and takes most of the time: it is applied once, to the
        difference, which is small enough for autocast's number format (0.4 % of a change in HU, not of the HU).
        """
        if self.only_changes_basis():
            return self._from_basis(z - other, None)
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

    def _from_basis(self, z: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        blocks = _pointwise(to_slices_first(z), self._basis.T * self.latent_std, bias)
        return from_slices_first(depth_to_space(blocks, self.factor))

    def only_changes_basis(self) -> bool:
        """Whether the weights are those of `lossless_start` and get no gradient; looked at again when they changed.

        While a graph is recorded there may be no values to look at: what was found last counts, until weights are
        loaded.
        """
        if self._learns() or not self.exact_path:
            return False
        weights = list(self.net.parameters())
        if torch.compiler.is_compiling() or any(isinstance(weight, FakeTensor) for weight in weights):
            return bool(self._found["lossless"])
        if any(weight.is_inference() for weight in weights):  # they do not tell when they change
            return False
        seen = [(id(weight), weight._version) for weight in weights]
        if seen != self._found["weights"]:
            if torch.jit.is_tracing() or weights[0].is_meta:
                return False
            self._found["lossless"] = is_lossless(self.net, factor=self.factor)
            self._found["weights"] = seen
        return bool(self._found["lossless"])

    def _learns(self) -> bool:
        """Whether weights get a gradient; if so, what they were found to be is forgotten.

        An optimizer that is fused changes weights without counting it in their `_version`.
        """
        learns = torch.is_grad_enabled() and any(weight.requires_grad for weight in self.net.parameters())
        if learns:
            _look_again(self)
        return learns

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
    if autocast_format(x.device.type) is None:
        return contextlib.nullcontext()  # nothing to switch off; torch.export writes such a context, and cannot read it
    return torch.autocast(x.device.type, enabled=False)


def _look_again(autoencoder: Autoencoder, _: object = None) -> None:
    """Forget what the weights were found to be."""
    autoencoder._found.update(weights=[], lossless=False)


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


def _pointwise(x: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Apply a matrix (O, C) to the channels of x (B, C, D, H, W), in x's number format."""
    with full_precision(x):
        return functional.conv3d(x, matrix[:, :, None, None, None], bias)


def _channels(per_channel: torch.Tensor) -> torch.Tensor:
    return per_channel[:, None, None, None]
