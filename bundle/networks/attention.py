"""Self-attention within each slice, in place of attention between all voxels of a window.

Between all voxels it takes in what the window happens to hold: a slice depends on where a volume was cut, and a map of
512 x 512 x 32 voxels would take 68 GB. Within a slice the convolutions carry what neighbouring slices know, as spatial
layers do in models of video (Ho et al. 2022, arXiv:2204.03458), and slices can flow (networks.slice_stream).
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from bundle.networks.layout import each_slice

_ATTENTION = {"AttentionBlock", "SpatialAttentionBlock"}  # monai-generative's and MONAI core's


class SliceAttention(nn.Module):
    """What an attention block of either package does, in each slice by itself, with the block's own weights.

    Args:
        block: monai-generative's AttentionBlock or MONAI core's SpatialAttentionBlock; its weights keep their names.
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm = block.norm
        self._nested = hasattr(block, "attn")  # MONAI core's keeps its projections one level deeper
        if self._nested:
            self.attn = block.attn
        else:
            self.to_q, self.to_k, self.to_v = block.to_q, block.to_k, block.to_v
        self.heads: int = (block.attn if self._nested else block).num_heads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Attend within the slices of x (B, C, D, H, W)."""
        return x + each_slice(self.norm(x), self._attended)

    def _attended(self, slices: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W), a sequence of H*W tokens each, to what their tokens find."""
        inner: Any = self.attn if self._nested else self
        tokens = slices.flatten(2).transpose(1, 2)
        query, key, value = (
            project(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for project in (inner.to_q, inner.to_k, inner.to_v)
        )
        found = functional.scaled_dot_product_attention(query, key, value)
        return found.transpose(1, 2).flatten(2).transpose(1, 2).unflatten(2, slices.shape[2:])


def use_slice_attention(net: nn.Module) -> nn.Module:
    """Exchange every attention block of `net`, in place, for SliceAttention, and return it.

    Raises:
        RuntimeError: when there is none: a release of the package that names them differently must stop the build.
    """
    blocks = [
        (parent, name, child)
        for parent in net.modules()
        for name, child in parent.named_children()
        if type(child).__name__ in _ATTENTION
    ]
    if not blocks:
        raise RuntimeError("no attention block was found: this release of the package names them differently")
    for parent, name, block in blocks:
        setattr(parent, name, SliceAttention(block))
    return net
