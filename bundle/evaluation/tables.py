"""The tables of an evaluation: metrics.json (schema versioned), metrics.csv, and one for the screen."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bundle.files import whole_file, write_json

SCHEMA = 1
METRICS = {
    "psnr_1000": "dB, HU clipped to [-1000, 1000], data range 2000 HU, all voxels of the series",
    "ssim_1000": "HU clipped to [-1000, 1000], data range 2000 HU, 2D, gaussian window sigma 1.5, mean over slices",
    "rmse_hu": "HU, all voxels, nothing clipped",
    "rmse_hu_body": "HU, voxels inside the body, nothing clipped",
}
METHODS = {
    "input": "the degraded series",
    "autoencoder": "encode and decode of the target: what the latent can carry at best",
    "restored": "ours",
    "no_denoiser": "ours with the latent denoiser removed: must be clearly worse",
}
_COLUMNS = {"psnr_1000": "PSNR dB", "ssim_1000": "SSIM", "rmse_hu": "RMSE HU", "rmse_hu_body": "in body"}


@dataclass(frozen=True)
class Row:
    """Metrics of one method on one series; `trained_on` says whether the weights have seen the patient."""

    series: str
    method: str
    trained_on: str
    values: Mapping[str, float]


def write_tables(folder: Path, rows: Sequence[Row], *, header: Mapping[str, Any], failed: Mapping[str, str]) -> str:
    """Write metrics.json and metrics.csv into `folder` and return the table for the screen (80 columns)."""
    means = mean_rows(rows)
    content = {
        "schema": SCHEMA,
        "definitions": METRICS,
        "methods": {row.method: METHODS.get(row.method, "one draw") for row in means},
        **header,
        "rows": [_plain(row) for row in rows],
        "mean": [_plain(row) for row in means],
        "failed": dict(failed),
    }
    write_json(folder / "metrics.json", content)
    with whole_file(folder / "metrics.csv") as temporary, temporary.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["series", "method", "trained_on", *METRICS])
        writer.writerows([row.series, row.method, row.trained_on, *row.values.values()] for row in rows)
    return screen_table(means, series=len({row.series for row in rows}))


def mean_rows(rows: Sequence[Row]) -> list[Row]:
    """Mean over series of every method, in the order in which methods came."""
    means = []
    for method in dict.fromkeys(row.method for row in rows):
        own = [row for row in rows if row.method == method]
        values = {name: _mean([row.values[name] for row in own]) for name in METRICS}
        means.append(Row("mean", method, ", ".join(sorted({row.trained_on for row in own})), values))
    return means


def screen_table(means: Sequence[Row], *, series: int) -> str:
    """Return the means as text of at most 80 columns, with the ranges and whether the series were trained on."""
    lines = [f"{'method':<16}" + "".join(f"{title:>11}" for title in _COLUMNS.values())]
    for row in means:
        cells = [f"{row.values[name]:.4f}" if name == "ssim_1000" else f"{row.values[name]:.2f}" for name in _COLUMNS]
        lines.append(f"{row.method:<16}" + "".join(f"{cell:>11}" for cell in cells))
    lines.append(f"PSNR and SSIM on [-1000, 1000] HU, data range 2000 HU; mean of {series} series;")
    lines.append(f"these series: {means[0].trained_on}")
    return "\n".join(lines)


def read_training_keys(training_file: str | Path | None) -> dict[str, str]:
    """Return what a training run's data.json says of each series: 'also trained on', or validated only."""
    try:
        content = json.loads(Path(training_file).read_text()) if training_file else {}
    except (OSError, ValueError):
        return {}
    keys = {entry["series"]: "validated on during training" for entry in content.get("validation", [])}
    return keys | {entry["series"]: "also trained on" for entry in content.get("train", [])}


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else float("nan")


def _plain(row: Row) -> dict[str, Any]:
    """JSON has no infinity (identical volumes) and no NaN (no body): both become null."""
    values = {name: value if math.isfinite(value) else None for name, value in row.values.items()}
    return {"series": row.series, "method": row.method, "trained_on": row.trained_on, **values}
