"""The refiner: a small network on pixels beside the latent path, for what a latent position is too coarse for."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from bundle.networks.layout import Convolution, compact, from_slices_first, to_slices_first, use_slices_first
from bundle.networks.norm import drop_norms

_LOCAL_MEAN = (1, 5, 5)  # slices, rows, columns whose mean is taken off, so that anatomy's level is not seen
ANATOMY_SCALE = 4.0  # air is -4 and soft tissue differs by tenths, as large as the other features differ


class Refiner(nn.Module):
    """Corrects a restoration from the input and the restoration itself, in units of the slice's noise.

    Dividing by the noise level makes one set of weights serve every dose. The output starts at zero.

    Args:
        features: channels per level of the U-Net (MONAI's DynUNet, halving in plane only).
    """

    def __init__(self, features: Sequence[int]) -> None:
        super().__init__()
        from monai.networks.nets.dynunet import DynUNet

        levels = len(features)
        self.net = DynUNet(
            spatial_dims=3,
            in_channels=4,
            out_channels=1,
            kernel_size=[(3, 3, 3)] * levels,
            strides=[(1, 1, 1)] + [(2, 2, 1)] * (levels - 1),
            upsample_kernel_size=[(2, 2, 1)] * (levels - 1),
            filters=list(features),
            norm_name="instance",
        )
        # Instance norms depend on the window; without them a tile equals the same part of the whole volume.
        use_slices_first(drop_norms(self.net))
        _activate_in_convolutions(self.net)
        last = self.net.output_block.conv.conv
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.multiple = 2 ** (levels - 1)

    def forward(self, base: torch.Tensor, restored: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Return the correction (B, 1, H, W, D) to `restored`.

        Args:
            base: the input in linear network units (B, 1, H, W, D); H and W multiples of `multiple`.
            restored: the latent path's restoration, same shape.
            noise: noise level per slice in network units (B, 1, 1, 1, D).
        """
        base, restored, noise = (to_slices_first(x) for x in (base, restored, noise))
        local_mean = functional.avg_pool3d(restored, _LOCAL_MEAN, stride=1, padding=(0, 2, 2), count_include_pad=False)
        features = [
            ((base - restored) / noise).clamp(-6.0, 6.0),
            ((restored - local_mean) / noise).clamp(-6.0, 6.0),
            (ANATOMY_SCALE * restored).clamp(-ANATOMY_SCALE, ANATOMY_SCALE),
            noise.log().expand_as(base),
        ]
        # Channels last: in another order the network takes twice the time.
        x = torch.cat([compact(x).movedim(1, -1) for x in features], dim=-1).movedim(-1, 1)
        return from_slices_first(noise * self.net(x).float())


def _activate_in_convolutions(net: nn.Module) -> None:
    """Hand the activation of DynUNet's blocks, which follows each of their convolutions, to these."""
    from monai.networks.blocks.dynunet_block import UnetBasicBlock

    for block in net.modules():
        if isinstance(block, UnetBasicBlock):
            for convolution in (block.conv1, block.conv2):
                assert isinstance(convolution.conv, Convolution)
                convolution.conv.slope = block.lrelu.negative_slope
            block.lrelu = nn.Identity()
