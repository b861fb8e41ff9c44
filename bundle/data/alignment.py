"""A real pair on one grid: the poor partner brought onto the target's by true geometry, cropped to what both show.

Geometry alone decides where the partner's voxels go; nothing is registered. What the images show is then compared, so
that a wrong partner, or one of another breath, is refused instead of teaching the network to move things.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from scipy.ndimage import affine_transform

from bundle.degrade.slabs import linear_weights
from bundle.dicom.geometry import grid_spacing_mm
from bundle.errors import BundleError

_SAME_DIRECTION = 0.999  # cosine of 2.6 degrees
_EDGE = 0.01  # of a voxel: rounding of written positions
_LEAST_OVERLAP = 0.25  # of the smaller of the two, along each axis
_LEAST_SLICES = 4
_COARSE_MM = 4.0  # images are compared at about this resolution
_SOFT_HU = (-1000.0, 600.0)
_LEAST_CORRELATION = 0.9
_MOST_SHIFT_MM = 2.0
_MOST_SHIFT_STEPS = 0.75  # or as much of a voxel, where voxels are large
_SEARCHED = 4  # coarse voxels to either side


@dataclass(frozen=True)
class _Overlap:
    """Where both lie: target voxels [start, stop), and from their indices to the partner's."""

    start: tuple[int, int, int]
    stop: tuple[int, int, int]
    matrix: np.ndarray
    offset: np.ndarray


class PartnerOnGridd(MapTransform):
    """Bring a poor partner onto the target's grid by linear interpolation; crop both to their overlap, check them.

    Data without a partner pass. Identical grids pass without interpolation, bit for bit.

    Args:
        keys: the partner, (1, H, W, D) HU.
        target: key of the target, (1, H, W, D) HU.
    """

    def __init__(self, keys: KeysCollection = "poor", *, target: str = "image") -> None:
        super().__init__(keys, allow_missing_keys=True)
        self.target = target

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with both on one grid.

        Raises:
            BundleError: when the two are no pair; says why.
        """
        result = dict(data)
        for key in self.key_iterator(result):
            result[self.target], result[key] = align(result[self.target], result[key])
        return result


def align(target: MetaTensor, partner: MetaTensor) -> tuple[MetaTensor, MetaTensor]:
    """The target cropped to what both show, and the partner on that grid; images (1, H, W, D) HU.

    Raises:
        BundleError: when they lie at an angle, overlap too little, are shifted, or show different anatomy.
    """
    overlap = _overlap(target, partner)
    region = tuple(slice(start, stop) for start, stop in zip(overlap.start, overlap.stop, strict=True))
    affine = np.array(target.affine, np.float64)
    affine[:3, 3] += affine[:3, :3] @ np.array(overlap.start)
    target_hu = np.asarray(target)[0][region]
    partner_hu = _on_grid(np.asarray(partner)[0], overlap, target_hu.shape)
    check_pair(target_hu, partner_hu, spacing_mm=grid_spacing_mm(affine))
    return _image(target, target_hu, affine), _image(partner, partner_hu, affine)


def check_pair(target_hu: np.ndarray, partner_hu: np.ndarray, *, spacing_mm: tuple[float, float, float]) -> None:
    """Refuse two volumes (H, W, D) on one grid that do not show the same thing at the same place.

    Raises:
        BundleError: with the correlation or the shift that was found.
    """
    factors = tuple(max(round(_COARSE_MM / spacing), 1) for spacing in spacing_mm)
    target, partner = (_coarse(np.clip(volume, *_SOFT_HU), factors) for volume in (target_hu, partner_hu))
    correlation = _correlation(target, partner)
    if not correlation >= _LEAST_CORRELATION:
        raise BundleError(
            f"the partner does not show the same anatomy (correlation {correlation:.2f}, "
            f"{_LEAST_CORRELATION} is needed)",
            hint="check which series belong together",
        )
    steps_mm = np.array(factors) * spacing_mm
    shift_mm = np.array([_shift(target, partner, axis) for axis in range(3)]) * steps_mm
    if (np.abs(shift_mm) > np.maximum(_MOST_SHIFT_MM, _MOST_SHIFT_STEPS * np.array(spacing_mm))).any():
        shown = " x ".join(f"{value:.1f}" for value in shift_mm)
        raise BundleError(
            f"the partner is misregistered by about {shown} mm (rows, columns, slices)",
            hint="pairs have to come from one scan",
        )


def _overlap(target: MetaTensor, partner: MetaTensor) -> _Overlap:
    affines = [np.asarray(image.affine, np.float64) for image in (target, partner)]
    axes = [affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0) for affine in affines]
    cosines = np.abs(axes[1].T @ axes[0])  # partner's axis, target's axis
    pairing = cosines.argmax(axis=0)
    if cosines.max(axis=0).min() < _SAME_DIRECTION or len(set(pairing.tolist())) < 3:
        raise BundleError("the partner's slices lie at another angle", hint="pairs have to come from one scan")
    between = np.linalg.inv(affines[1]) @ affines[0]
    matrix, origin = between[:3, :3], between[:3, 3]
    start, stop = [], []
    middle = (np.array(target.shape[1:]) - 1) / 2
    for axis, other in enumerate(pairing):
        index = np.repeat(middle[None], target.shape[1 + axis], axis=0)
        index[:, axis] = np.arange(target.shape[1 + axis])
        place = index @ matrix[other] + origin[other]
        inside = np.flatnonzero((place >= -_EDGE) & (place <= partner.shape[1 + other] - 1 + _EDGE))
        extent = partner.shape[1 + other] / abs(matrix[other, axis])  # in target voxels
        least = _LEAST_OVERLAP * min(extent, target.shape[1 + axis])
        if len(inside) < max(least, _LEAST_SLICES if axis == 2 else 1):
            where = ("rows", "columns", "slices")[axis]
            raise BundleError(
                f"the partner overlaps with {len(inside)} of {target.shape[1 + axis]} {where} only",
                hint="pairs have to show the same part of the body",
            )
        start.append(int(inside[0]))
        stop.append(int(inside[-1]) + 1)
    return _Overlap(
        (start[0], start[1], start[2]), (stop[0], stop[1], stop[2]), matrix, origin + matrix @ np.array(start)
    )


def _on_grid(volume: np.ndarray, overlap: _Overlap, shape: tuple[int, ...]) -> np.ndarray:
    """The partner (H, W, D) at the target's voxels, float32."""
    whole = np.rint(overlap.offset)
    corner = whole.astype(int)
    if np.allclose(overlap.matrix, np.eye(3), atol=1e-5) and np.allclose(overlap.offset, whole, atol=_EDGE):
        region = tuple(slice(first, first + length) for first, length in zip(corner, shape, strict=True))
        return np.array(volume[region], np.float32)
    matrix = overlap.matrix.copy()
    matrix[2, 2] = 1.0
    if np.allclose(matrix, np.eye(3), atol=1e-5) and np.allclose(overlap.offset[:2], whole[:2], atol=_EDGE):
        # Only the slices differ: one product with a narrow matrix, many times faster than the general way.
        places = overlap.offset[2] + overlap.matrix[2, 2] * np.arange(shape[2])
        weights = linear_weights(np.arange(volume.shape[2], dtype=float), places).astype(np.float32)
        rows, columns = (slice(first, first + length) for first, length in zip(corner[:2], shape[:2], strict=True))
        return np.asarray(volume[rows, columns], np.float32) @ weights.T
    moved = affine_transform(
        np.asarray(volume, np.float32), overlap.matrix, overlap.offset, output_shape=shape, order=1, mode="nearest"
    )
    return np.asarray(moved, np.float32)


def _coarse(volume: np.ndarray, factors: tuple[int, ...]) -> np.ndarray:
    """Means over blocks, what is left over at the ends cut off."""
    factors = tuple(min(factor, size) for factor, size in zip(factors, volume.shape, strict=True))
    sizes = [size // factor for size, factor in zip(volume.shape, factors, strict=True)]
    cut = volume[tuple(slice(0, size * factor) for size, factor in zip(sizes, factors, strict=True))]
    blocks = cut.reshape([part for pair in zip(sizes, factors, strict=True) for part in pair])
    return np.asarray(blocks.mean(axis=(1, 3, 5), dtype=np.float64))


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float(np.sum(a * b) / max(np.sqrt(np.sum(a * a) * np.sum(b * b)), 1e-9))


def _shift(target: np.ndarray, partner: np.ndarray, axis: int) -> float:
    """How far, in voxels, the partner has to move along an axis to fit best: the top of a parabola."""
    most = min(_SEARCHED, target.shape[axis] // 2)
    found = [_correlation(*_moved(target, partner, axis, by)) for by in range(-most, most + 1)]
    best = int(np.argmax(found))
    if not 0 < best < len(found) - 1:
        return float(best - most)
    below, top, above = found[best - 1 : best + 2]
    curvature = below - 2 * top + above
    return best - most + (0.5 * (below - above) / curvature if curvature < 0 else 0.0)


def _moved(target: np.ndarray, partner: np.ndarray, axis: int, by: int) -> tuple[np.ndarray, np.ndarray]:
    """What lies on each other when the partner moves by so many voxels."""
    a, b = np.moveaxis(target, axis, 0), np.moveaxis(partner, axis, 0)
    return a[max(by, 0) : len(a) + min(by, 0)], b[max(-by, 0) : len(b) + min(-by, 0)]


def _image(source: MetaTensor, volume: np.ndarray, affine: np.ndarray) -> MetaTensor:
    image = source.clone()
    image.set_array(torch.from_numpy(np.ascontiguousarray(volume, np.float32))[None])
    image.affine = torch.from_numpy(affine)
    return image
