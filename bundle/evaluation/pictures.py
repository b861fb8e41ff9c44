"""Pictures for people: the same slice before and after, and what was changed."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bundle.files import whole_file
from bundle.metrics.masks import body_mask
from bundle.units import SOFT_TISSUE_WINDOW, window_limits

_DIFFERENCE_HU = 100.0
_MARGIN = 10  # pixels around the body


def save_comparison(path: Path, volumes: Mapping[str, np.ndarray], *, title: str) -> None:
    """Save the body in the middle slice of each volume in the soft-tissue window, and restored minus input.

    Args:
        path: PNG to write.
        volumes: 'input', 'restored' and perhaps 'target', each HU (H, W, D) with H along a row of pixels.
        title: says what is shown; no identifiers.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    middle = next(iter(volumes.values())).shape[2] // 2
    rows, columns = _body_box(next(iter(volumes.values()))[:, :, middle])
    low, high = window_limits(SOFT_TISSUE_WINDOW)
    shape = volumes["input"][rows, columns, middle].shape
    height = 4 * shape[1] / shape[0] + 0.7
    figure = Figure(figsize=(4 * (len(volumes) + 1), height), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(volumes) + 1)
    for axis, (name, volume) in zip(axes, volumes.items(), strict=False):
        axis.imshow(volume[rows, columns, middle].T, cmap="gray", vmin=low, vmax=high)
        axis.set_title(f"{name}  [{low:.0f}, {high:.0f}] HU")
    difference = (volumes["restored"] - volumes["input"])[rows, columns, middle].T
    axes[-1].imshow(difference, cmap="gray", vmin=-_DIFFERENCE_HU, vmax=_DIFFERENCE_HU)
    axes[-1].set_title(f"restored - input  [{-_DIFFERENCE_HU:.0f}, {_DIFFERENCE_HU:.0f}] HU")
    for axis in axes:
        axis.set_axis_off()
    figure.suptitle(title)
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png")


def _body_box(slice_hu: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns that hold the body, with a margin; all of them where there is none."""
    body = body_mask(slice_hu[:, :, None])[:, :, 0]
    if not body.any():
        return slice(None), slice(None)
    rows, columns = (np.flatnonzero(body.any(axis=axis)) for axis in (1, 0))
    return tuple(slice(max(span[0] - _MARGIN, 0), span[-1] + 1 + _MARGIN) for span in (rows, columns))  # type: ignore
