"""The HTML report of a series: one file that opens offline, with what a reader needs to judge a restoration.

No identifiers: the series key, geometry, settings and numbers only.
"""

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from bundle.configuration import bundle_root
from bundle.files import whole_file
from bundle.metrics.masks import tissue_masks
from bundle.metrics.noise import nps_radial
from bundle.metrics.regions import homogeneous_regions, noise_magnitude
from bundle.restoration.planes import Slices, planes, spread
from bundle.restoration.restored import RestoredSlices, SourceSlices
from bundle.units import BONE_WINDOW, LUNG_WINDOW, SOFT_TISSUE_WINDOW

WINDOWS = {"soft tissue": SOFT_TISSUE_WINDOW, "lung": LUNG_WINDOW, "bone": BONE_WINDOW}
_MEASURED_SLICES = 8
_NPS_PIXELS = 32
_HISTOGRAM_HU = np.arange(-1100, 1501, 20)


def write_report(
    path: Path,
    source: SourceSlices,
    restored: RestoredSlices,
    *,
    uncertainty: Slices | None,
    summary: Mapping[str, Any],
    now: datetime.datetime,
) -> None:
    """Write the report of one series, under 15 MB: pictures take at most `planes.MOST_BYTES`.

    Args:
        path: the HTML file.
        source: the input.
        restored: the result, on the same grid.
        uncertainty: standard deviation in HU (H, W, D), or None.
        summary: what summary.json says of the series; holds no identifiers.
        now: the run's clock reading.
    """
    measured = _measured(source, restored)
    content = (
        _environment()
        .get_template("report.html.j2")
        .render(
            summary=summary,
            noise=measured["rows"],
            charts=[chart for chart in (measured["histogram"], measured["nps"]) if chart],
            planes=planes(source, restored, uncertainty),
            windows={name: list(window) for name, window in WINDOWS.items()},
            spacing=[round(value, 4) for value in source.spacing_mm],
            settings=summary.get("settings", {}),
            date=now.strftime("%Y-%m-%d"),
            model_card=_model_card(str(summary["weights_sha256"])),
        )
    )
    with whole_file(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


def _model_card(weights_digest: str) -> str:
    """The model card beside the shipped weights, when it is of these; a file that opens offline cannot link to it."""
    try:
        text = (Path(bundle_root()) / "models" / "README.md").read_text(encoding="utf-8")
    except OSError:
        return ""
    return text if f"`{weights_digest}`" in text else ""


def polyline(x: np.ndarray, y: np.ndarray, *, width: float, height: float, top: float) -> str:
    """Points of an SVG polyline: x over its own range, y from 0 to `top`."""
    across = (x - x[0]) / (x[-1] - x[0]) * width
    up = height - np.clip(y / top, 0, 1) * height
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(across, up, strict=True))


def _environment() -> jinja2.Environment:
    loader = jinja2.PackageLoader("bundle.restoration", "templates")
    return jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)


def _measured(source: SourceSlices, restored: RestoredSlices) -> dict[str, Any]:
    """Noise and its spectrum in homogeneous soft tissue, and the histogram, over a sample of slices."""
    chosen = spread(source.shape[2], _MEASURED_SLICES)
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
    height, *ends = (np.format_float_positional(v, 4, fractional=False, trim="-") for v in (top, x[0], x[-1]))
    return {"title": title, "x": x_label, "y": y_label, "top": height, "ends": ends, "lines": lines}
