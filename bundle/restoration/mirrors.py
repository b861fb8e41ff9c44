"""Mirror images: what a network gets wrong depends on left and right, anatomy's truth does not.

Their mean is the self-ensemble of Timofte et al. 2016 (doi:10.1109/CVPR.2016.206) without the quarter turns, which CT's
grid bears but the patient's anatomy does not.
"""

from collections.abc import Callable

import torch

# Axes of (B, C, H, W, D); slices keep their order, so that noise levels per slice stay where they are.
FLIPS: tuple[tuple[int, ...], ...] = ((), (3,), (2,), (2, 3))
COUNTS = (1, 2, 4)  # of the first of them: as it is, left-right, up-down and both


def mirrored(restore: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    """Return `restore` of the mirror image of x, turned back.

    Args:
        restore: image to image, (B, C, H, W, D) to (B, 1, H, W, D).
        x: its input.
        axes: of FLIPS.
    """
    return restore(x.flip(axes)).flip(axes) if axes else restore(x)
