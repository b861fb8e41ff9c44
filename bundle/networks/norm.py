"""Normalisation whose result does not depend on how a volume was cut into slabs, or into tiles."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from bundle.networks.layout import each_slice


class VoxelLayerNorm(nn.Module):
    """Layer normalisation over channels, at each voxel by itself (Ba et al. 2016, arXiv:1607.06450).

    GroupNorm takes its statistics over the whole window, so a tile and the volume that it was cut from give
    different results; this does not. Weights have GroupNorm's names and shapes.
    """

    def __init__(self, channels: int, *, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise (B, C, H, W, D) over C."""
        channels_last = x.movedim(1, -1)
        return functional.layer_norm(channels_last, self.weight.shape, self.weight, self.bias, self.eps).movedim(-1, 1)


class SliceGroupNorm(nn.Module):
    """Group normalisation (Wu and He 2018, arXiv:1803.08494) with statistics of each slice by itself.

    GroupNorm's are those of all slices that it is given, so that a slice depends on where a volume was cut; here it
    does not, and slices can flow (networks.slice_stream). Weights have GroupNorm's names and shapes.
    """

    def __init__(self, groups: int, channels: int, *, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.groups, self.eps = groups, eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise (B, C, D, H, W) over H, W and the channels of a group."""
        return each_slice(
            x, lambda slices: functional.group_norm(slices, self.groups, self.weight, self.bias, self.eps)
        )


def use_slice_norms(net: nn.Module) -> nn.Module:
    """Exchange every GroupNorm of `net`, in place, for SliceGroupNorm, and return it."""
    return _exchange(net, nn.GroupNorm, lambda norm: SliceGroupNorm(norm.num_groups, norm.num_channels, eps=norm.eps))


def use_voxel_norms(net: nn.Module) -> nn.Module:
    """Exchange every GroupNorm of `net`, in place, for VoxelLayerNorm, and return it."""
    return _exchange(net, nn.GroupNorm, lambda norm: VoxelLayerNorm(norm.num_channels, eps=norm.eps))


def drop_norms(net: nn.Module) -> nn.Module:
    """Exchange every group or instance norm of `net`, in place, for the identity, and return it."""
    return _exchange(net, (nn.GroupNorm, nn.InstanceNorm3d), lambda _: nn.Identity())


def _exchange(net: nn.Module, kind: type | tuple[type, ...], make: Callable[..., nn.Module]) -> nn.Module:
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, kind):
                setattr(parent, name, make(child))
    return net
