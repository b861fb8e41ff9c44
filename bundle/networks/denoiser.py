"""The denoiser: DiffusionModelUNet in 3D on latents, conditional on the degraded latent and on the scan."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import nn

from bundle.networks.attention import use_slice_attention
from bundle.networks.compat import NetworksFrom, build_denoiser, keep_generative_layout
from bundle.networks.inplane import make_denoiser_in_plane
from bundle.networks.layout import compact, from_slices_first, to_slices_first, use_slices_first
from bundle.networks.norm import use_slice_norms, use_voxel_norms

# The networks' sinusoidal time embedding was made for step numbers of 0 to 1000 (Ho et al. 2020).
_STEPS_PER_UNIT_TIME = 1000.0


class Denoiser(nn.Module):
    """Predicts, from a latent at time t, what the diffusion process asks for (bridge: residual; DDPM: epsilon).

    Args:
        latent_channels: channels of the latent.
        context_channels: maps that describe the scan (noise level, spacings), constant within a slice; 0 for none.
        channels: channels per level.
        attention_levels: which levels have self-attention.
        num_res_blocks: residual blocks per level.
        norm_groups: groups of SliceGroupNorm; None takes VoxelLayerNorm and drops the middle attention,
            whose cost is quadratic in the slice, so that tiles and whole slices give the same result.
        networks_from: 'generative' or 'core'.
    """

    def __init__(
        self,
        latent_channels: int,
        *,
        context_channels: int,
        channels: Sequence[int],
        attention_levels: Sequence[bool],
        num_res_blocks: int,
        norm_groups: int | None,
        networks_from: NetworksFrom,
    ) -> None:
        super().__init__()
        net = build_denoiser(
            networks_from,
            spatial_dims=3,
            in_channels=2 * latent_channels + context_channels,
            out_channels=latent_channels,
            num_res_blocks=num_res_blocks,
            num_channels=tuple(channels),
            attention_levels=tuple(attention_levels),
            norm_num_groups=norm_groups or 1,
            num_head_channels=64 if any(attention_levels) else channels[-1],
        )
        make_denoiser_in_plane(net)
        if norm_groups is None:
            use_voxel_norms(net)
            cast(nn.Module, net.middle_block).attention = nn.Identity()
        else:
            use_slice_attention(use_slice_norms(net))
        self.net = keep_generative_layout(use_slices_first(net), networks_from)
        self.context_channels = context_channels
        self.multiple = 2 ** (len(channels) - 1)

    def forward(
        self, z_t: torch.Tensor, degraded: torch.Tensor, t: torch.Tensor, context: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the prediction (B, L, h, w, D).

        Args:
            z_t: latent at time t (B, L, h, w, D); h and w multiples of `multiple`.
            degraded: latent of the degraded image, same shape.
            t: time in [0, 1], (B,).
            context: (B, context_channels, 1, 1, D), or None when there are none.
        """
        inputs = [z_t, degraded]
        if self.context_channels:
            assert context is not None
            inputs.append(context.expand(-1, -1, *z_t.shape[2:4], -1))
        x = torch.cat([to_slices_first(compact(x)) for x in inputs], dim=1)
        return from_slices_first(self.net(x, timesteps=t * _STEPS_PER_UNIT_TIME).float())
