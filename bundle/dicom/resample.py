"""Series with gaps or uneven spacing on a regular grid, by the true positions of their slices; only when asked for.

What is between two slices is interpolated linearly from both, along the line on which their corners lie (a tilted
gantry's is not the normal), never from further away than `MAX_GAP_MM`. Slices that were really there and lie on the
grid keep their stored values.

The grid's spacing: where the positions are a regular grid with holes, its spacing, so that every true slice is kept.
Else the finest spacing that occurs more than once (a seam between two blocks is not a spacing; the median would drop
slices of a thinner block), with the longest run of it on the grid. The ends are then rounded to the grid, so that no
more than half a spacing is lost or added: beyond the last true slice its values are held. `notes_on_grid` says so.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from pydicom.dataset import Dataset

from bundle.dicom.derived_header import decimal_string
from bundle.dicom.elements import Unusable, decimals
from bundle.dicom.encoding import step_out_of_padding
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
from bundle.dicom.pixels import padding_range
from bundle.dicom.volume import SliceOrigins, Volume
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


def resample(volume: Volume, grid: SliceGrid) -> Volume:
    """Put a volume of true slices on a regular grid.

    Interpolated values are rounded to stored values of the nearest true slice's rescale, so that the result can be
    written exactly. Where one of the two slices is padded nothing can be interpolated: the nearest one's value stands.

    Args:
        volume: the true slices in order; its affine is not used.
        grid: from `regular_grid` for the same slices.
    """
    origins = grid.origins
    nearest = [origins.nearest(k) for k in range(len(origins))]
    stored = np.stack([_stored(volume, origins, k) for k in range(len(origins))])  # (D, W, H)
    limits = np.iinfo(volume.stored.dtype)
    fits = limits.min <= stored.min() and stored.max() <= limits.max
    stored = stored.astype(volume.stored.dtype if fits else np.int64)
    slope, intercept = volume.slope[nearest], volume.intercept[nearest]
    array = (stored * slope[:, None, None] + intercept[:, None, None]).astype(np.float32)
    mask = None if volume.padding_mask is None else volume.padding_mask[:, :, nearest]
    return replace(
        volume,
        array=array.transpose(2, 1, 0),
        affine=grid.affine,
        headers=tuple(_header(volume, grid, k) for k in range(len(origins))),
        stored=stored.transpose(2, 1, 0),
        slope=slope,
        intercept=intercept,
        padding_mask=mask,
        origins=origins,
        true_headers=volume.headers,
    )


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


def _stored(volume: Volume, origins: SliceOrigins, k: int) -> np.ndarray:
    """Stored values (rows, columns) of slice k, int64, at its nearest true slice's rescale."""
    near = origins.nearest(k)
    own: np.ndarray = volume.stored[:, :, near].T.astype(np.int64)
    if len(origins.of(k)) == 1:
        return own
    below, above, weight = int(origins.below[k]), int(origins.above[k]), float(origins.weight[k])
    hu = [volume.stored[:, :, n].T * volume.slope[n] + volume.intercept[n] for n in (below, above)]
    between = (1 - weight) * hu[0] + weight * hu[1]
    values = np.rint((between - volume.intercept[near]) / volume.slope[near]).astype(np.int64)
    if volume.padding_mask is None:
        return values
    padded = (volume.padding_mask[:, :, below] | volume.padding_mask[:, :, above]).T
    values = step_out_of_padding(values, padding_range(volume.headers[near]), where=~padded)
    return np.where(padded, own, values)


def _header(volume: Volume, grid: SliceGrid, k: int) -> Dataset:
    """The nearest true slice's header at the place of slice k.

    Slice Thickness is the true slice's where the slice is one; an interpolated slice shows what lies between two:
    no less than their distance, and no less than either's thickness.
    """
    origins = grid.origins
    sources = [volume.headers[n] for n in origins.of(k)]
    header = copy.deepcopy(volume.headers[origins.nearest(k)])
    place = grid.affine[:3, 3] + k * grid.affine[:3, 2]
    normal = np.cross(grid.affine[:3, 0], grid.affine[:3, 1])
    normal /= np.linalg.norm(normal)
    header.ImagePositionPatient = [_millimetres(value) for value in place]
    header.SpacingBetweenSlices = _millimetres(abs(float(grid.affine[:3, 2] @ normal)))
    header.InstanceNumber = str(k + 1)
    locations = [_number(source, "SliceLocation") for source in sources]
    header.pop("SliceLocation", None)  # the scanner's own zero: interpolated as the slices are, or left out
    if origins.exact[k] and locations[0] is not None:
        header.SliceLocation = _millimetres(locations[0])
    elif len(sources) == 2 and locations[0] is not None and locations[1] is not None:
        header.SliceLocation = _millimetres(locations[0] + origins.weight[k] * (locations[1] - locations[0]))
    if len(sources) == 2:
        a, b = (np.array(decimals(source, "ImagePositionPatient", count=3)) for source in sources)
        thickness = [_number(source, "SliceThickness") or 0.0 for source in sources]
        header.SliceThickness = _millimetres(max(abs(float((b - a) @ normal)), *thickness))
    return header


def _millimetres(value: float) -> str:
    """A length with a nanometre's precision, as a decimal string."""
    return decimal_string(round(float(value), 6) + 0.0)


def _number(header: Dataset, keyword: str) -> float | None:
    try:
        return decimals(header, keyword, count=1)[0]
    except Unusable:
        return None
