"""Geometry of a stack of slices: where each lies, whether they make one regular grid, and its affine.

Positions and orientations are PS3.3 C.7.6.2.1.1 (Image Plane). Order is along the slice normal, never by
Instance Number, Slice Location or file name.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset

from bundle.dicom.elements import Unusable, decimals

SAME_PLACE_MM = 1e-3
# Positions are written with few digits: 0.01 mm or 2 % of the step is rounding, more is another grid.
STEP_TOLERANCE_MM = 0.02
STEP_TOLERANCE = 0.02
LINE_TOLERANCE = 0.05
SAME_ORIENTATION = 1e-3
LIKELY_SAME_ORIENTATION = 1e-2
MAX_TILT_DEGREES = 45.0
_SQUARE = 0.01  # by how much the sides of a square pixel may differ


class Uneven(Unusable):
    """Slices lie on no regular grid: some are missing, or their spacing changes; `bundle.dicom.resample` mends that."""


@dataclass(frozen=True)
class Plane:
    """One slice's place: corner, directions along a row and down a column (LPS), spacing (row, column distance)."""

    position: np.ndarray
    row: np.ndarray
    column: np.ndarray
    spacing: tuple[float, float]

    @property
    def normal(self) -> np.ndarray:
        """Unit vector across the slice, right-handed with row and column."""
        return np.cross(self.row, self.column)


def plane(header: Dataset) -> Plane:
    """The slice's place, from its header.

    Raises:
        Unusable: naming the element that is missing or impossible.
    """
    position = np.array(decimals(header, "ImagePositionPatient", count=3))
    row, column = orientation(header)
    spacing = decimals(header, "PixelSpacing", count=2)
    if not all(0.01 <= value <= 20 for value in spacing):
        raise Unusable("PixelSpacing is outside 0.01 to 20 mm")
    if np.abs(position).max() > 1e5:
        raise Unusable("ImagePositionPatient lies more than 100 m away")
    return Plane(position, row, column, (spacing[0], spacing[1]))


def orientation(header: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors along a row of pixels and down a column, LPS.

    Raises:
        Unusable: when they are missing or not orthonormal.
    """
    cosines = np.array(decimals(header, "ImageOrientationPatient", count=6))
    row, column = cosines[:3], cosines[3:]
    if abs(np.linalg.norm(row) - 1) > 1e-3 or abs(np.linalg.norm(column) - 1) > 1e-3 or abs(row @ column) > 1e-3:
        raise Unusable("ImageOrientationPatient does not hold two orthogonal unit vectors")
    return row, column


def same_orientation(a: Plane, b: Plane, *, tolerance: float) -> bool:
    """Whether two slices lie parallel, with the same direction of rows."""
    return bool(max(np.abs(a.row - b.row).max(), np.abs(a.column - b.column).max()) <= tolerance)


def heights(planes: Sequence[Plane]) -> np.ndarray:
    """Positions along the first slice's normal, mm, (N,)."""
    normal = planes[0].normal
    return np.array([p.position @ normal for p in planes])


def same_place(a: Plane, b: Plane) -> bool:
    """Whether two parallel slices lie in one plane."""
    return bool(abs((a.position - b.position) @ a.normal) <= SAME_PLACE_MM)


def grid_affine(planes: Sequence[Plane]) -> np.ndarray:
    """Affine (i, j, k, 1) -> LPS mm of slices in order, float64 (4, 4).

    The third column is the mean step from slice to slice as it is, so a tilted gantry gives a sheared affine.

    Raises:
        Unusable: when there is one slice only, or the slices make no regular grid; says where.
    """
    if len(planes) < 2:
        raise Unusable("is a single slice: a volume needs at least two")
    check_alike(planes)
    _check_steps(heights(planes))
    positions = np.stack([p.position for p in planes])
    step = (positions[-1] - positions[0]) / (len(planes) - 1)
    check_line(
        positions,
        positions[0] + np.arange(len(positions))[:, None] * step,
        spacing=abs(float(step @ planes[0].normal)),
    )
    check_shear(step, planes[0])
    return affine_of(planes[0], step, origin=positions[0])


def affine_of(first: Plane, step: np.ndarray, *, origin: np.ndarray) -> np.ndarray:
    """Affine (i, j, k, 1) -> LPS mm, float64 (4, 4), of slices like `first`, `step` (3,) mm apart from `origin` on."""
    affine = np.eye(4)
    affine[:3, 0] = first.row * first.spacing[1]  # i steps from column to column
    affine[:3, 1] = first.column * first.spacing[0]
    affine[:3, 2] = step
    affine[:3, 3] = origin
    return affine


def grid_spacing_mm(affine: np.ndarray) -> tuple[float, float, float]:
    """Distance in mm between neighbours along i and j, and between slice planes along k, of an affine (4, 4).

    The planes' distance is taken along their normal: in a sheared grid the step from slice to slice is longer.
    """
    i, j, k = affine[:3, 0], affine[:3, 1], affine[:3, 2]
    normal = np.cross(i, j)
    return float(np.linalg.norm(i)), float(np.linalg.norm(j)), float(abs(k @ normal) / np.linalg.norm(normal))


def slices_last(affine: np.ndarray) -> list[int]:
    """The three axes of a volume of unknown order (NIfTI), its slices last, from its affine (4, 4).

    Pixels of CT are square: the axis with a spacing of its own counts slices. Where none has, or each, it is the one
    that goes most from foot to head.
    """
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    alike = [[other for other in range(3) if np.isclose(steps[axis], steps[other], rtol=_SQUARE)] for axis in range(3)]
    alone = [axis for axis in range(3) if len(alike[axis]) == 1]
    slices = alone[0] if len(alone) == 1 else int(np.argmax(np.abs(affine[2, :3]) / steps))
    return [*(axis for axis in range(3) if axis != slices), slices]


def tilt_degrees(affine: np.ndarray) -> float:
    """Angle between the step from slice to slice and the slice normal; 0 for an orthogonal grid."""
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    cosine = affine[:3, 2] @ normal / (np.linalg.norm(affine[:3, 2]) * np.linalg.norm(normal))
    return math.degrees(math.acos(min(1.0, abs(float(cosine)))))


def check_alike(planes: Sequence[Plane]) -> None:
    """Refuse slices of several orientations or pixel spacings.

    Raises:
        Unusable: saying which.
    """
    first = planes[0]
    if not all(same_orientation(first, p, tolerance=SAME_ORIENTATION) for p in planes):
        raise Unusable("ImageOrientationPatient (orientation) changes from slice to slice")
    if not all(np.allclose(first.spacing, p.spacing, rtol=1e-4) for p in planes):
        raise Unusable("PixelSpacing changes from slice to slice")


def _check_steps(places: np.ndarray) -> None:
    steps = np.diff(places)
    if steps.min() <= SAME_PLACE_MM:
        raise Unusable("several slices share one position (ImagePositionPatient)")
    usual = float(np.median(steps))
    odd = np.flatnonzero(np.abs(steps - usual) > max(STEP_TOLERANCE_MM, STEP_TOLERANCE * usual))
    if len(odd) == 0:
        return
    smallest = float(steps.min())
    multiples = steps / smallest
    if np.all(np.abs(multiples - np.round(multiples)) < 0.1):  # a regular grid with holes
        missing = int(np.round(multiples).sum()) - len(steps)
        odd = np.flatnonzero(np.round(multiples) > 1)
        kind, advice = (
            f"{missing} missing slice{'s' if missing > 1 else ''} (gap)",
            f"where the spacing is {smallest:.4g} mm",
        )
    else:
        kind, advice = "spacing of slices is irregular", f"where {usual:.4g} mm is usual"
    shown = ", ".join(f"{steps[n]:.4g} mm at {places[n]:.2f}..{places[n + 1]:.2f} mm" for n in odd[:3])
    more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
    raise Uneven(f"{kind}: {shown}{more}, {advice}", hint="fetch the missing slices, or pass --gaps resample")


def check_line(positions: np.ndarray, wanted: np.ndarray, *, spacing: float) -> None:
    """Refuse slices whose corners (N, 3) do not lie where a straight line has them (`wanted`, N, 3).

    Raises:
        Uneven: saying how far off they are.
    """
    worst = float(np.abs(positions - wanted).max())
    if worst > max(STEP_TOLERANCE_MM, LINE_TOLERANCE * spacing):
        raise Uneven(f"spacing is irregular: slices lie up to {worst:.3g} mm off a straight, regular line")


def check_shear(step: np.ndarray, first: Plane) -> None:
    """Refuse a shear that is no gantry's: it tilts about the patient's left-right axis, so slices step along columns.

    Raises:
        Unusable: when they step along rows, or further than a gantry tilts.
    """
    length = float(np.linalg.norm(step))
    if abs(step @ first.row) > 0.01 * length:
        raise Unusable("slices shift sideways in-plane, along their rows, as no tilted gantry makes them (shear)")
    tilt = math.degrees(math.asin(min(1.0, abs(float(step @ first.column)) / length)))
    if tilt > MAX_TILT_DEGREES:
        raise Unusable(f"slices are sheared by {tilt:.0f} degrees, more than a gantry tilts")
