"""The refiner: a small network on pixels beside the latent path, for what a latent position is too coarse for."""

import functools
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional

from bundle.networks.layout import (
    Convolution,
    compact,
    depth_to_space,
    from_slices_first,
    only_computes,
    space_to_depth,
    to_slices_first,
    use_slices_first,
)
from bundle.networks.norm import drop_norms
from bundle.networks.slice_stream import SliceStream

BLOCK = 2  # rows and columns of the blocks whose pixels are channels
_LOCAL_MEAN = (1, 3, 3)  # slices, rows, columns of blocks: their mean is taken off, and anatomy's level not seen
_ANATOMY_SCALE = 4.0  # units of 250 HU: soft tissue differs by tenths of them, as the other features differ
_MOST_ANATOMY = 16.0  # 4000 HU: beyond lies no CT, but what an untrained diffusion gives
_SLICES = 8  # of full rows and columns that are worked on at a time, on a processor


class Refiner(nn.Module):
    """Corrects a restoration from the input and the restoration itself, in units of the slice's noise.

    Dividing by the noise level makes one set of weights serve every dose. The pixels of a block of 2 x 2 are channels,
    as in FFDNet (Zhang et al. 2018, doi:10.1109/TIP.2018.2839891): on full rows and columns a few channels take most of
    the time and leave the processor's matrix units idle. The output starts at zero.

    Args:
        features: channels per level of the U-Net (MONAI's DynUNet, halving in plane only). The last level and the way
            up from it see neighbouring slices; all else works slice by slice.
    """

    def __init__(self, features: Sequence[int]) -> None:
        super().__init__()
        from monai.networks.nets.dynunet import DynUNet

        levels = len(features)
        self.net = DynUNet(
            spatial_dims=3,
            in_channels=4 * BLOCK**2 + 1,
            out_channels=BLOCK**2,
            kernel_size=[(3, 3, 1)] * (levels - 1) + [(3, 3, 3)],
            strides=[(1, 1, 1)] + [(2, 2, 1)] * (levels - 1),
            upsample_kernel_size=[(2, 2, 1)] * (levels - 1),
            filters=list(features),
            norm_name="instance",
        )
        # Instance norms depend on the window; without them a tile equals the same part of the whole volume.
        use_slices_first(drop_norms(self.net))
        _activate_in_convolutions(self.net)
        # On the largest planes; by an attribute, for a module around it would change the names of the weights.
        last_up = self.net.skip_layers.upsample
        last_up.forward = functools.partial(_few_slices_at_a_time, last_up.forward)
        last = self.net.output_block.conv.conv
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.multiple = BLOCK * 2 ** (levels - 1)

    def forward(self, base: torch.Tensor, restored: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Return the correction (B, 1, H, W, D) to `restored`.

        Args:
            base: the input in linear network units (B, 1, H, W, D); H and W multiples of `multiple`.
            restored: the latent path's restoration, same shape.
            noise: noise level per slice in network units (B, 1, 1, 1, D).
        """
        base, restored, noise = (to_slices_first(x) for x in (base, restored, noise))
        correction = self.net(_features(base, restored, noise)).float()
        return from_slices_first(noise * depth_to_space(correction, BLOCK))


def _features(base: torch.Tensor, restored: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """What the network sees (B, 4 * BLOCK**2 + 1, D, H / BLOCK, W / BLOCK), of slices first."""
    blocks, removed = space_to_depth(restored, BLOCK), space_to_depth(base - restored, BLOCK)
    means = functional.avg_pool3d(restored, (1, BLOCK, BLOCK), stride=(1, BLOCK, BLOCK))
    local_mean = functional.avg_pool3d(means, _LOCAL_MEAN, stride=1, padding=(0, 1, 1), count_include_pad=False)
    features = [
        (removed / noise).clamp(-6.0, 6.0),
        ((blocks - local_mean) / noise).clamp(-6.0, 6.0),
        (_ANATOMY_SCALE * removed).clamp(-_MOST_ANATOMY, _MOST_ANATOMY),
        (_ANATOMY_SCALE * blocks).clamp(-_MOST_ANATOMY, _MOST_ANATOMY),
        noise.log().expand_as(means),
    ]
    # Channels last: in another order the network takes twice the time.
    return torch.cat([compact(x).movedim(1, -1) for x in features], dim=-1).movedim(-1, 1)


def _few_slices_at_a_time(
    forward: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], x: torch.Tensor, skip: torch.Tensor
) -> torch.Tensor:
    """What `forward`, which works slice by slice, makes of x and skip (B, C, D, H, W), in less memory."""
    if not only_computes(x) or SliceStream.marked(x) or x.shape[2] <= _SLICES:
        return forward(x, skip)
    result: torch.Tensor | None = None
    for first in range(0, x.shape[2], _SLICES):
        some = slice(first, first + _SLICES)
        part = forward(x[:, :, some], skip[:, :, some])
        if result is None:
            shape = (*part.shape[:2], x.shape[2], *part.shape[3:])
            order = torch.channels_last_3d
            result = torch.empty(shape, dtype=part.dtype, device=part.device, memory_format=order)
        result[:, :, some] = part
    assert result is not None
    return result


def _activate_in_convolutions(net: nn.Module) -> None:
    """Hand the activation of DynUNet's blocks, which follows each of their convolutions, to these."""
    from monai.networks.blocks.dynunet_block import UnetBasicBlock

    for block in net.modules():
        if isinstance(block, UnetBasicBlock):
            for convolution in (block.conv1, block.conv2):
                assert isinstance(convolution.conv, Convolution)
                convolution.conv.slope = block.lrelu.negative_slope
            block.lrelu = nn.Identity()
