"""Pictures for people: the same slice before and after, and what was changed."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bundle.files import whole_file
from bundle.units import SOFT_TISSUE_WINDOW, window_limits

_DIFFERENCE_HU = 100.0


def save_comparison(path: Path, volumes: Mapping[str, np.ndarray], *, title: str) -> None:
    """Save the middle slice of each volume in the soft-tissue window, and restored minus input.

    Args:
        path: PNG to write.
        volumes: 'input', 'restored' and perhaps 'target', each HU (H, W, D) with H along a row of pixels.
        title: says what is shown; no identifiers.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    middle = next(iter(volumes.values())).shape[2] // 2
    low, high = window_limits(SOFT_TISSUE_WINDOW)
    figure = Figure(figsize=(4 * (len(volumes) + 1), 4.5), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(volumes) + 1)
    for axis, (name, volume) in zip(axes, volumes.items(), strict=False):
        axis.imshow(volume[:, :, middle].T, cmap="gray", vmin=low, vmax=high)
        axis.set_title(f"{name}  [{low:.0f}, {high:.0f}] HU")
    difference = (volumes["restored"] - volumes["input"])[:, :, middle].T
    axes[-1].imshow(difference, cmap="gray", vmin=-_DIFFERENCE_HU, vmax=_DIFFERENCE_HU)
    axes[-1].set_title(f"restored - input  [{-_DIFFERENCE_HU:.0f}, {_DIFFERENCE_HU:.0f}] HU")
    for axis in axes:
        axis.set_axis_off()
    figure.suptitle(title)
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png")
