"""A mean over mirror images: what a network gets wrong depends on left and right, anatomy's truth does not.

Self-ensemble of Timofte et al. 2016 (doi:10.1109/CVPR.2016.206) without the quarter turns, which CT's grid bears but
the patient's anatomy does not.
"""

from collections.abc import Callable

import torch

# Axes of (B, C, H, W, D); slices keep their order, so that noise levels per slice stay where they are.
_FLIPS: tuple[tuple[int, ...], ...] = ((), (3,), (2,), (2, 3))
COUNTS = (1, 2, 4)


def mean_over_flips(restore: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, *, flips: int) -> torch.Tensor:
    """Return the mean of `restore` over x and its mirror images in the slice plane, each turned back.

    Args:
        restore: image to image, (B, C, H, W, D) to (B, 1, H, W, D).
        x: its input.
        flips: 1 (x alone), 2 (and left-right) or 4 (and up-down, and both); the cost grows with it.
    """
    assert flips in COUNTS
    total = restore(x)
    for axes in _FLIPS[1:flips]:
        total = total + restore(x.flip(axes)).flip(axes)
    return total / flips if flips > 1 else total
