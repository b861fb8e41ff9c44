"""The HTML report of a series: one file that opens offline, with what a reader needs to judge a restoration.

Pixels travel as compressed integers and become pictures in the browser, so that one copy of them serves every
window, and the difference is exact. No identifiers: the series key, geometry, settings and numbers only.
"""

import base64
import datetime
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jinja2
import numpy as np

from bundle.files import whole_file
from bundle.metrics.masks import tissue_masks
from bundle.metrics.noise import nps_radial
from bundle.metrics.regions import homogeneous_regions, noise_magnitude
from bundle.restoration.restored import RestoredSlices, SourceSlices
from bundle.units import BONE_WINDOW, LUNG_WINDOW, SOFT_TISSUE_WINDOW

WINDOWS = {"soft tissue": SOFT_TISSUE_WINDOW, "lung": LUNG_WINDOW, "bone": BONE_WINDOW}
MOST_BYTES = 15_000_000
_PIXEL_BYTES = 10_000_000  # of the file, for pictures; the rest takes under 1 MB
_MOST_SLICES = 24
_MEASURED_SLICES = 8
_NPS_PIXELS = 32
_HISTOGRAM_HU = np.arange(-1100, 1501, 20)


class Slices(Protocol):
    """Anything with slices [:, :, k], HU (H, W): an array, or a restoration made slice by slice."""

    def __getitem__(self, index: Any) -> np.ndarray:
        """One slice."""


def write_report(
    path: Path,
    source: SourceSlices,
    restored: RestoredSlices,
    *,
    uncertainty: Slices | None,
    summary: Mapping[str, Any],
    now: datetime.datetime,
) -> None:
    """Write the report of one series.

    Args:
        path: the HTML file.
        source: the input.
        restored: the result, on the same grid.
        uncertainty: standard deviation in HU (H, W, D), or None.
        summary: what summary.json says of the series; holds no identifiers.
        now: the run's clock reading.
    """
    planes = _planes(source, restored, uncertainty)
    measured = _measured(source, restored)
    content = (
        _environment()
        .get_template("report.html.j2")
        .render(
            summary=summary,
            noise=measured["rows"],
            charts=[chart for chart in (measured["histogram"], measured["nps"]) if chart],
            planes=planes,
            windows={name: list(window) for name, window in WINDOWS.items()},
            spacing=[round(value, 4) for value in source.spacing_mm],
            settings=summary.get("settings", {}),
            date=now.strftime("%Y-%m-%d"),
        )
    )
    with whole_file(path) as temporary:
        temporary.write_text(content, encoding="utf-8")
    assert path.stat().st_size < MOST_BYTES, "pictures were budgeted for less"


def packed(values: np.ndarray) -> str:
    """Whole numbers (rows, columns), int16, as base64 of deflated differences along rows, little endian."""
    whole = values.astype("<i2")
    step = np.diff(whole, axis=1, prepend=np.zeros((len(whole), 1), "<i2")).astype("<i2")
    # High and low bytes apart compress to two thirds of what they take together.
    planes = step.tobytes()[0::2] + step.tobytes()[1::2]
    return base64.b64encode(zlib.compress(planes, 9)).decode()


def polyline(x: np.ndarray, y: np.ndarray, *, width: float, height: float, top: float) -> str:
    """Points of an SVG polyline: x over its own range, y from 0 to `top`."""
    across = (x - x[0]) / (x[-1] - x[0]) * width
    up = height - np.clip(y / top, 0, 1) * height
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(across, up, strict=True))


def _environment() -> jinja2.Environment:
    loader = jinja2.PackageLoader("bundle.restoration", "templates")
    return jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)


def _planes(source: SourceSlices, restored: RestoredSlices, uncertainty: Slices | None) -> list[dict[str, Any]]:
    """Axial slices over the whole volume and the middle coronal and sagittal plane, as packed pictures."""
    depth = source.shape[2]
    spacing = source.spacing_mm
    numbers = _spread(depth, _MOST_SLICES)
    # Cross-sections want every slice, but only one line of it.
    lines = [_lines(source.slice_hu(k)) for k in range(depth)]
    after = [_lines(restored[:, :, k]) for k in range(depth)]
    cross = []
    for axis, name in enumerate(("coronal", "sagittal")):
        first, second = (np.stack([line[axis] for line in chosen[::-1]]) for chosen in (lines, after))
        cross.append((name, first, second, spacing[2] / spacing[axis]))
    pictures = [_picture(first, second, None) for _, first, second, _ in cross]
    used = sum(len(one["input"]) + len(one["change"]) for one in pictures)
    axial: list[dict[str, Any]] = []
    sample = _axial(source, restored, uncertainty, numbers[len(numbers) // 2])
    room = max(int((_PIXEL_BYTES - used) / sum(len(part) for part in sample.values() if isinstance(part, str))), 1)
    for k in numbers if len(numbers) <= room else [numbers[i] for i in _spread(len(numbers), room)]:
        axial.append(_axial(source, restored, uncertainty, k))
    planes: list[dict[str, Any]] = [{"name": "axial", "pictures": axial, "aspect": spacing[1] / spacing[0]}]
    for (name, _, _, aspect), picture in zip(cross, pictures, strict=True):
        planes.append({"name": name, "pictures": [picture], "aspect": aspect})
    return planes


def _lines(slice_hu: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A slice's (H, W) middle column and row; copies, or each would keep its whole slice."""
    height, width = slice_hu.shape
    return slice_hu[:, width // 2].copy(), slice_hu[height // 2, :].copy()


def _axial(source: SourceSlices, restored: RestoredSlices, uncertainty: Slices | None, k: int) -> dict[str, Any]:
    deviation = None if uncertainty is None else np.asarray(uncertainty[:, :, k], np.float32).T
    return {**_picture(source.slice_hu(k).T, restored[:, :, k].T, deviation), "label": f"slice {k + 1}"}


def _picture(before_hu: np.ndarray, after_hu: np.ndarray, deviation_hu: np.ndarray | None) -> dict[str, Any]:
    """Packed input, change and deviation of an image (rows, columns) in HU; change in tenths."""
    before = np.clip(np.round(before_hu), -32000, 32000)
    change = np.clip(np.round(10 * (after_hu - before_hu)), -32000, 32000)
    picture = {"rows": before.shape[0], "columns": before.shape[1], "label": ""}
    picture |= {"input": packed(before), "change": packed(change)}
    if deviation_hu is not None:
        picture["deviation"] = packed(np.clip(np.round(10 * deviation_hu), 0, 32000))
    return picture


def _measured(source: SourceSlices, restored: RestoredSlices) -> dict[str, Any]:
    """Noise and its spectrum in homogeneous soft tissue, and the histogram, over a sample of slices."""
    chosen = _spread(source.shape[2], _MEASURED_SLICES)
    before = np.stack([source.slice_hu(k) for k in chosen], axis=2)
    after = np.stack([restored[:, :, k] for k in chosen], axis=2)
    # Squares are chosen on the result, whose anatomy stands out of less noise, and measured on both.
    centres = homogeneous_regions(after, tissue_masks(after)["soft"], size=_NPS_PIXELS)
    rows = []
    nps = None
    if centres:
        levels = [noise_magnitude(volume, centres, size=_NPS_PIXELS) for volume in (before, after)]
        rows.append((f"soft tissue, {len(centres)} squares of {_NPS_PIXELS} pixels", *levels))
        spectra = [
            nps_radial(volume, spacing_mm=source.spacing_mm, centres=centres, size=_NPS_PIXELS)
            for volume in (before, after)
        ]
        nps = _chart("Noise power spectrum, soft tissue", "1/mm", "HU^2 mm^2", spectra[0][0], [s[1] for s in spectra])
    counts = [np.histogram(volume, _HISTOGRAM_HU)[0].astype(float) for volume in (before, after)]
    centres_hu = (_HISTOGRAM_HU[1:] + _HISTOGRAM_HU[:-1]) / 2
    shares = [np.log10(1 + count) for count in counts]
    return {"rows": rows, "nps": nps, "histogram": _chart("Histogram", "HU", "log10(1 + voxels)", centres_hu, shares)}


def _chart(title: str, x_label: str, y_label: str, x: np.ndarray, both: Sequence[np.ndarray]) -> dict[str, Any]:
    top = float(max(values.max() for values in both)) or 1.0
    lines = [polyline(x, values, width=420, height=180, top=top) for values in both]
    ends = [f"{x[0]:.4g}", f"{x[-1]:.4g}"]  # thousands of HU without an exponent
    return {"title": title, "x": x_label, "y": y_label, "top": f"{top:.3g}", "ends": ends, "lines": lines}


def _spread(total: int, most: int) -> list[int]:
    """At most so many numbers below `total`, evenly spread."""
    if total <= most:
        return list(range(total))
    return [int(value) for value in np.unique(np.linspace(0, total - 1, most + 2)[1:-1].round())]
