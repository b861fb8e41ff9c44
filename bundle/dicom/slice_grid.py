"""A regular grid for slices with gaps or uneven spacing, along the line on which their corners lie.

The grid's spacing: where the positions are a regular grid with holes, its spacing, so that every true slice is kept.
Else the finest spacing that occurs more than once (a seam between two blocks is not a spacing; the median would drop
slices of a thinner block), with the longest run of it on the grid. The ends are then rounded to the grid, so that no
more than half a spacing is lost or added: beyond the last true slice its values are held. `notes_on_grid` says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bundle.dicom.elements import Unusable
from bundle.dicom.geometry import (
    LINE_TOLERANCE,
    STEP_TOLERANCE,
    STEP_TOLERANCE_MM,
    Plane,
    affine_of,
    check_alike,
    check_line,
    check_shear,
    heights,
)
from bundle.dicom.volume import SliceOrigins
from bundle.errors import BundleError

GAPS = ("refuse", "resample")
MAX_GAP_MM = 20.0  # between slices further apart an organ may begin and end: nothing can be said
MAX_GROWTH = 8  # slices of the grid for each true one


@dataclass(frozen=True, eq=False)
class SliceGrid:
    """A regular grid for uneven slices.

    Attributes:
        affine: (i, j, k, 1) -> LPS mm, float64 (4, 4).
        origins: where the grid's slices come from.
    """

    affine: np.ndarray
    origins: SliceOrigins


def check_gaps_option(gaps: str) -> str:
    """Return `gaps`, which says what becomes of uneven series.

    Raises:
        BundleError: when it is neither 'refuse' nor 'resample'.
    """
    if gaps not in GAPS:
        raise BundleError(f"gaps must be refuse or resample, not {gaps}")
    return gaps


def regular_grid(planes: Sequence[Plane]) -> SliceGrid:
    """Regular grid for slices in order along their normal, no two at one place.

    Raises:
        Unusable: when they lie on no straight line, or too far apart to say what is between them.
    """
    check_alike(planes)
    places = heights(planes)
    steps = np.diff(places)
    positions = np.stack([p.position for p in planes])
    along = (positions[-1] - positions[0]) / (places[-1] - places[0])  # per mm of height
    check_line(positions, positions[0] + (places - places[0])[:, None] * along, spacing=float(np.median(steps)))
    check_shear(along, planes[0])
    widest = int(steps.argmax())
    if steps[widest] > MAX_GAP_MM:
        where = f"{steps[widest]:.4g} mm at {places[widest]:.2f}..{places[widest + 1]:.2f} mm"
        raise Unusable(f"gap is too wide to resample across: {where}, more than {MAX_GAP_MM:g} mm")
    wanted, tolerance = _wanted(places)
    if len(wanted) > MAX_GROWTH * len(planes):
        raise Unusable(f"spacing is too irregular to resample: {len(planes)} slices would become {len(wanted)}")
    affine = affine_of(
        planes[0],
        along * (wanted[-1] - wanted[0]) / (len(wanted) - 1),
        origin=positions[0] + (wanted[0] - places[0]) * along,
    )
    return SliceGrid(affine, _origins(places, wanted, tolerance))


def notes_on_grid(grid: SliceGrid, planes: Sequence[Plane]) -> list[str]:
    """What a user should know of a resampled series."""
    origins, places = grid.origins, heights(planes)
    spacing = abs(float(grid.affine[:3, 2] @ planes[0].normal))
    kept, new = len(set(origins.below[origins.exact])), int((~origins.exact).sum())
    steps = np.diff(places)
    odd = [n for n in range(len(steps)) if abs(steps[n] - spacing) > max(STEP_TOLERANCE_MM, STEP_TOLERANCE * spacing)]
    shown = ", ".join(f"{steps[n]:.4g} mm at {places[n]:.2f}..{places[n + 1]:.2f} mm" for n in odd[:3])
    more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
    note = (
        f"gaps or irregular spacing ({shown}{more}): resampled to {spacing:.4g} mm by true positions, "
        f"{kept} of {len(places)} slices kept as they were, {new} interpolated"
    )
    ends = np.array([grid.affine[:3, 3], grid.affine[:3, 3] + (len(origins) - 1) * grid.affine[:3, 2]])
    off = float(np.abs(ends @ planes[0].normal - places[[0, -1]]).max())
    ends_off = f"the resampled grid ends {off:.2f} mm from its first or last slice"
    return [note, ends_off] if off > max(STEP_TOLERANCE_MM, LINE_TOLERANCE * spacing) else [note]


def _wanted(places: np.ndarray) -> tuple[np.ndarray, float]:
    """Heights of the grid's slices, mm (D,), and how near a true slice has to lie to be on one."""
    steps = np.diff(places)
    numbers = np.concatenate([[0], np.cumsum(np.round(steps / steps.min()))])
    spacing = (places[-1] - places[0]) / numbers[-1]
    tolerance = max(STEP_TOLERANCE_MM, LINE_TOLERANCE * spacing)
    if np.abs(places - places[0] - numbers * spacing).max() <= tolerance:  # a regular grid with holes
        return places[0] + np.arange(int(numbers[-1]) + 1) * spacing, tolerance
    alike = np.abs(steps[:, None] - steps) <= np.maximum(STEP_TOLERANCE_MM, STEP_TOLERANCE * steps)
    recurring = alike.sum(axis=1) > 1
    finest = float(steps[recurring].min() if recurring.any() else steps.min())
    same = np.abs(steps - finest) <= max(STEP_TOLERANCE_MM, STEP_TOLERANCE * finest)
    start, length = _longest_run(same)
    spacing = (places[start + length] - places[start]) / length
    before, after = (round(float(end / spacing)) for end in (places[start] - places[0], places[-1] - places[start]))
    return places[start] + np.arange(-before, after + 1) * spacing, max(STEP_TOLERANCE_MM, STEP_TOLERANCE * spacing)


def _longest_run(flags: np.ndarray) -> tuple[int, int]:
    """Start and length of the longest run of True; the first of several."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(int)))
    starts, ends = edges[::2], edges[1::2]
    longest = int((ends - starts).argmax())
    return int(starts[longest]), int(ends[longest] - starts[longest])


def _origins(places: np.ndarray, wanted: np.ndarray, tolerance: float) -> SliceOrigins:
    below = np.clip(np.searchsorted(places, wanted, side="right") - 1, 0, len(places) - 1)
    above = np.where(wanted < places[0], below, np.minimum(below + 1, len(places) - 1))
    weight = (wanted - places[below]) / np.maximum(places[above] - places[below], 1e-9) * (above > below)
    near = np.abs(places[:, None] - wanted).argmin(axis=0)
    exact = np.abs(places[near] - wanted) <= tolerance
    below, above = np.where(exact, near, below), np.where(exact, near, above)
    return SliceOrigins(below, above, np.where(exact, 0.0, weight), exact)
