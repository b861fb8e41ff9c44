"""Pictures for people: the same slice by several methods, what each got wrong, errors as bars, noise spectra."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bundle.files import whole_file
from bundle.metrics.masks import body_mask
from bundle.units import LUNG_WINDOW, SOFT_TISSUE_WINDOW, window_limits

_DIFFERENCE_HU = 100.0
_MARGIN = 10  # pixels around the body
_LUNG_SHARE = 0.15  # of the body, from which on the lung window is shown as well
BRAIN_WINDOW = (40.0, 80.0)


def save_comparison(path: Path, volumes: Mapping[str, np.ndarray], *, title: str) -> None:
    """Save the body in the middle slice of each volume in the soft-tissue window, and restored minus input.

    Args:
        path: PNG to write.
        volumes: 'input', 'restored' and perhaps 'target', each HU (H, W, D) with H along a row of pixels.
        title: says what is shown; no identifiers.
    """
    middle = next(iter(volumes.values())).shape[2] // 2
    panels: list[_Panel] = [(name, volume[:, :, middle], SOFT_TISSUE_WINDOW) for name, volume in volumes.items()]
    difference = (volumes["restored"] - volumes["input"])[:, :, middle]
    panels.append(("restored - input", difference, (0.0, 2 * _DIFFERENCE_HU)))
    _save_panels(path, [panels], box_of=next(iter(volumes.values()))[:, :, middle], title=title)


def save_methods(path: Path, volumes: Mapping[str, np.ndarray], target_hu: np.ndarray, *, title: str) -> None:
    """Save the middle slice by every method beside the target, in a row for each window, and what each got wrong.

    Args:
        path: PNG to write.
        volumes: by method, HU (H, W, D).
        target_hu: HU (H, W, D).
        title: says what is shown; no identifiers.
    """
    middle = target_hu.shape[2] // 2
    shown = {**{name: volume[:, :, middle] for name, volume in volumes.items()}, "target": target_hu[:, :, middle]}
    rows = [[(name, image, window) for name, image in shown.items()] for window in _windows(target_hu[:, :, middle])]
    differences = {f"{name} - target": image - shown["target"] for name, image in shown.items() if name != "target"}
    rows.append([(name, image, (0.0, 2 * _DIFFERENCE_HU)) for name, image in differences.items()])
    _save_panels(path, rows, box_of=target_hu[:, :, middle], title=title)


def save_bars(path: Path, values: Mapping[str, Mapping[str, float]], *, label: str) -> None:
    """Save bars of one metric: a group for each series, a bar for each method.

    Args:
        path: PNG to write.
        values: by series, by method.
        label: the metric, with its unit.
    """
    methods = list(dict.fromkeys(name for found in values.values() for name in found))
    figure, axes = _figure(1, 1, width=1.2 + 0.3 * (len(methods) + 2) * len(values), height=4.5)
    axis = axes[0][0]
    width = 1 / (len(methods) + 2)
    for number, name in enumerate(methods):
        heights = [found.get(name, np.nan) for found in values.values()]
        axis.bar(np.arange(len(values)) + number * width, heights, width, label=name)
    axis.set_xticks(np.arange(len(values)) + 0.4, list(values))
    axis.set_ylabel(label)
    axis.legend(fontsize=7, ncols=2)
    _save(figure, path)


def save_spectra(path: Path, spectra: Mapping[str, tuple[np.ndarray, np.ndarray]], *, title: str) -> None:
    """Save noise power spectra, HU^2 mm^2 over 1/mm, one line a method."""
    figure, axes = _figure(1, 1, width=6, height=4.5)
    axis = axes[0][0]
    for number, (name, (frequency, power)) in enumerate(spectra.items()):
        width = 2.5 if name == "target" else 1
        axis.semilogy(frequency, power, label=name, linewidth=width, linestyle=("-", "--", ":")[number // 10 % 3])
    axis.set_xlabel("frequency, 1/mm")
    axis.set_ylabel("noise power, HU^2 mm^2")
    axis.set_title(title)
    axis.legend(fontsize=7)
    _save(figure, path)


_Panel = tuple[str, np.ndarray, tuple[float, float]]


def _save_panels(path: Path, rows: Sequence[Sequence[_Panel]], *, box_of: np.ndarray, title: str) -> None:
    box = _body_box(box_of)
    shape = box_of[box].shape
    columns = max(len(row) for row in rows)
    height = 4 * shape[1] / shape[0] + 0.35
    figure, axes = _figure(len(rows), columns, width=4 * columns, height=len(rows) * height + 0.4)
    for row, panels in enumerate(rows):
        for axis in axes[row]:
            axis.set_axis_off()
        for axis, (name, image, window) in zip(axes[row], panels, strict=False):
            low, high = window_limits(window)
            axis.imshow(image[box].T, cmap="gray", vmin=low, vmax=high)
            axis.set_title(f"{name}  [{low:.0f}, {high:.0f}] HU")
    figure.suptitle(title)
    _save(figure, path)


def _figure(rows: int, columns: int, *, width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _save(figure: Any, path: Path) -> None:
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png")


def _windows(slice_hu: np.ndarray) -> list[tuple[float, float]]:
    """What a radiologist would set: brain inside a skull, soft tissue, and lung where there is some."""
    body = body_mask(slice_hu[:, :, None])[:, :, 0]
    if not body.any():
        return [SOFT_TISSUE_WINDOW]
    inside = slice_hu[body]
    if np.mean((inside > 0) & (inside < 80)) > 0.5 and np.mean(inside > 500) > 0.05:
        return [BRAIN_WINDOW]
    lung = np.mean(inside < -500) > _LUNG_SHARE
    return [SOFT_TISSUE_WINDOW, LUNG_WINDOW] if lung else [SOFT_TISSUE_WINDOW]


def _body_box(slice_hu: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns that hold the body, with a margin; all of them where there is none."""
    body = body_mask(slice_hu[:, :, None])[:, :, 0]
    if not body.any():
        return slice(None), slice(None)
    rows, columns = (np.flatnonzero(body.any(axis=axis)) for axis in (1, 0))
    return tuple(slice(max(span[0] - _MARGIN, 0), span[-1] + 1 + _MARGIN) for span in (rows, columns))  # type: ignore
