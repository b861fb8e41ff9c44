"""Where a restoration may touch an image: in the body, and nothing that carries another meaning."""

from collections.abc import Iterable

import numpy as np
import torch
from scipy import ndimage

Box = tuple[tuple[int, int], tuple[int, int]]  # rows and columns, each (start, stop)

_BODY_HU = -500.0
_LEAST_PIXELS = 400  # smaller islands in a slice are the table's edge or noise in air
_MARGIN_PIXELS = 4  # skin and the noise right outside it
_BOX_MARGIN_PIXELS = 24  # air around the body that the network sees, so that the skin is no border of a tile
HARD_LIMITS_HU = (-1100.0, 3071.0)  # beyond: padding, metal, values that no tissue has


def touchable(volume_hu: np.ndarray, padding_mask: np.ndarray | None = None) -> np.ndarray:
    """Return bool (H, W, D): voxels in or near a body in their slice, inside the hard limits, and no padding.

    Args:
        volume_hu: HU (H, W, D).
        padding_mask: voxels outside the scan's field of view (H, W, D).
    """
    region = np.stack([_body_of(volume_hu[:, :, k] > _BODY_HU) for k in range(volume_hu.shape[2])], axis=2)
    region &= (volume_hu >= HARD_LIMITS_HU[0]) & (volume_hu <= HARD_LIMITS_HU[1])
    return region if padding_mask is None else region & ~padding_mask


def dense_box(slab_hu: torch.Tensor, *, multiple: int) -> Box | None:
    """Rows and columns, each (start, stop), around all that `touchable` can be; None where a slab is air alone.

    Args:
        slab_hu: HU (H, W, D).
        multiple: starts are multiples of it.
    """
    dense = (slab_hu > _BODY_HU).any(dim=2)
    limits = []
    for axis in (1, 0):
        places = dense.any(dim=axis).nonzero()
        if len(places) == 0:
            return None
        first, last = int(places[0]) - _BOX_MARGIN_PIXELS, int(places[-1]) + _BOX_MARGIN_PIXELS
        # Both ends on the grid: few different sizes, and a network compiled for one serves many slabs.
        stop = min(-(-(last + 1) // multiple) * multiple, slab_hu.shape[1 - axis])
        limits.append((max(first, 0) // multiple * multiple, stop))
    return limits[0], limits[1]


def joint_box(boxes: Iterable[Box | None]) -> Box | None:
    """Return the least box around all; None where there is none."""
    some = [box for box in boxes if box is not None]
    if not some:
        return None
    (top, bottom), (left, right) = (zip(*limits, strict=True) for limits in zip(*some, strict=True))
    return (min(top), max(bottom)), (min(left), max(right))


def _body_of(dense: np.ndarray) -> np.ndarray:
    """Large dense islands of a slice (H, W), with what they enclose (lungs, bowel gas) and a margin."""
    filled = ndimage.binary_fill_holes(dense)
    labels, count = ndimage.label(filled)
    if count == 0:
        return np.zeros_like(dense)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    # A small phantom's or a child's slice has small islands: the largest one always counts.
    kept = (sizes >= min(_LEAST_PIXELS, sizes.max()))[labels]
    return ndimage.binary_dilation(kept & (labels > 0), iterations=_MARGIN_PIXELS)


def apply_difference(
    volume_hu: np.ndarray, difference_hu: np.ndarray, *, strength: float, padding_mask: np.ndarray | None = None
) -> np.ndarray:
    """Return volume + strength * difference where a restoration may touch it, else the volume exactly.

    Args:
        volume_hu: the input, HU (H, W, D).
        difference_hu: restored minus input (H, W, D).
        strength: 0 gives the input back bit for bit.
        padding_mask: as for `touchable`.
    """
    allowed = np.where(touchable(volume_hu, padding_mask), difference_hu, 0).astype(np.float32)
    return added(volume_hu, allowed, strength=strength)


def added(hu: np.ndarray, change_hu: np.ndarray, *, strength: float) -> np.ndarray:
    """Return HU + strength * change, float32, of any shape; where the change is 0 the HU bit for bit, -0.0 as well."""
    return np.where(change_hu != 0, hu + np.float32(strength) * change_hu, hu).astype(np.float32, copy=False)
