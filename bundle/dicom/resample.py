"""Volumes with gaps or uneven spacing put on a regular grid by the true positions of their slices; only when asked for.

What is between two slices is interpolated linearly from both, along the line on which their corners lie (a tilted
gantry's is not the normal). Slices that were really there and lie on the grid (`slice_grid`) keep their stored values.
"""

import copy
from dataclasses import replace

import numpy as np
from pydicom.dataset import Dataset

from bundle.dicom.derived_header import decimal_string
from bundle.dicom.elements import Unusable, decimals
from bundle.dicom.encoding import step_out_of_padding
from bundle.dicom.layouts import padding_range
from bundle.dicom.slice_grid import SliceGrid
from bundle.dicom.volume import SliceOrigins, Volume
from bundle.pages import Pages, let_go, plain_pages


def resample(volume: Volume, grid: SliceGrid, pages: Pages = plain_pages) -> Volume:
    """Put a volume of true slices on a regular grid.

    Interpolated values are rounded to stored values of the nearest true slice's rescale, so that the result can be
    written exactly. Where one of the two slices is padded nothing can be interpolated: the nearest one's value stands.

    Args:
        volume: the true slices in order; its affine is not used.
        grid: from `regular_grid` for the same slices.
        pages: makes the array for the stored values, in memory or on disk.
    """
    origins = grid.origins
    nearest = [origins.nearest(k) for k in range(len(origins))]
    stored = _all_stored(volume, origins, pages)
    return replace(
        volume,
        stored=stored.transpose(2, 1, 0),
        affine=grid.affine,
        headers=tuple(_header(volume, grid, k) for k in range(len(origins))),
        slope=volume.slope[nearest],
        intercept=volume.intercept[nearest],
        padding=tuple(volume.padding[k] for k in nearest),
        origins=origins,
        true_headers=volume.headers,
    )


def _all_stored(volume: Volume, origins: SliceOrigins, pages: Pages) -> np.ndarray:
    """Stored values (D, W, H): in the volume's own type where that holds them all, else int64 and in memory."""
    height, width, _ = volume.shape
    kind = volume.stored.dtype
    limits = np.iinfo(kind)
    stored = pages((len(origins), width, height), kind)
    for k in range(len(origins)):
        values = _stored(volume, origins, k)
        if not limits.min <= values.min() <= values.max() <= limits.max:
            return np.stack([_stored(volume, origins, n) for n in range(len(origins))])
        stored[k] = values
        let_go(stored[k])
    return stored


def _stored(volume: Volume, origins: SliceOrigins, k: int) -> np.ndarray:
    """Stored values (rows, columns) of slice k, int64, at its nearest true slice's rescale."""
    near = origins.nearest(k)
    own: np.ndarray = volume.stored[:, :, near].T.astype(np.int64)
    let_go(volume.stored[:, :, near])
    if len(origins.of(k)) == 1:
        return own
    below, above, weight = int(origins.below[k]), int(origins.above[k]), float(origins.weight[k])
    hu = [volume.stored[:, :, n].T * volume.slope[n] + volume.intercept[n] for n in (below, above)]
    let_go(volume.stored[:, :, below : above + 1])
    between = (1 - weight) * hu[0] + weight * hu[1]
    values = np.rint((between - volume.intercept[near]) / volume.slope[near]).astype(np.int64)
    if not volume.is_padded:
        return values
    padded = (volume.slice_padding(below) | volume.slice_padding(above)).T
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
