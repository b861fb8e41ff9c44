"""The tables of an evaluation: metrics.json (schema versioned), metrics.csv, slices.csv, and one for the screen."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bundle.evaluation.measures import METRICS, SERIES_METRICS, SLICE_METRICS
from bundle.evaluation.methods import Kind
from bundle.evaluation.ours import RESTORED
from bundle.evaluation.significance import compare
from bundle.files import whole_file, write_json

SCHEMA = 2
KEY_METRIC = "rmse_hu_body"
COMPARED = ("rmse_hu_body", "psnr_1000", "ssim_1000", "vif")
LOWER_IS_BETTER = frozenset({"rmse_hu", "rmse_hu_body"})
_COLUMNS = {"psnr_1000": "PSNR dB", "ssim_1000": "SSIM", "rmse_hu": "RMSE HU", "rmse_hu_body": "in body"}


@dataclass(frozen=True)
class Row:
    """Metrics of one method on one series.

    Attributes:
        series: its key.
        method: name.
        trained_on: whether the weights have seen the patient.
        values: by metric; a slice metric's is the mean over slices.
        slices: by slice metric, the values of the slices.
        kind: of the method.
    """

    series: str
    method: str
    trained_on: str
    values: Mapping[str, float]
    slices: Mapping[str, np.ndarray] = field(default_factory=dict)
    kind: Kind = "reference"

    @classmethod
    def of(
        cls, series: str, method: str, trained_on: str, kind: Kind, slices: Mapping[str, np.ndarray], whole: Mapping
    ) -> "Row":
        """Make a row of slice values and series values; what was not measured is nan."""
        means = {name: _mean(values) for name, values in slices.items()}
        values = {name: float(means.get(name, whole.get(name, math.nan))) for name in METRICS}
        return cls(series, method, trained_on, values, slices, kind)


def write_tables(
    folder: Path,
    rows: Sequence[Row],
    *,
    header: Mapping[str, Any],
    failed: Mapping[str, str],
    methods: Mapping[str, str] | None = None,
    missing: Mapping[str, str] | None = None,
    problems: Mapping[str, Mapping[str, str]] | None = None,
    phantom: Mapping[str, Any] | None = None,
    parameters: Mapping[str, Mapping[str, Mapping[str, float]]] | None = None,
) -> str:
    """Write the tables into `folder` and return the one for the screen (80 columns).

    Args:
        folder: where they go.
        rows: of all series and methods.
        header: what the tables say about degradation, weights and settings.
        failed: series that could not be evaluated, and why.
        methods: what each method is.
        missing: methods without a row, and why.
        problems: by series, metrics that could not be measured, and why.
        phantom: results on the phantom.
        parameters: by series and method, with what a method that has parameters restored it.
    """
    means = mean_rows(rows)
    content = {
        "schema": SCHEMA,
        "definitions": METRICS,
        "methods": dict(methods or {}),
        "parameters": {key: dict(found) for key, found in (parameters or {}).items()},
        **header,
        "rows": [{**_plain(row), "spread": _spread(row), "worst_slice": _worst(row)} for row in rows],
        "mean": [{**_plain(row), "spread": _spread(row), "worst_slice": _worst(row)} for row in means],
        "significance": significance(means),
        "phantom": _finite(dict(phantom or {})),
        "missing": dict(missing or {}),
        "problems": {key: dict(found) for key, found in (problems or {}).items()},
        "failed": dict(failed),
    }
    write_json(folder / "metrics.json", content)
    with whole_file(folder / "metrics.csv") as temporary, temporary.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["series", "method", "trained_on", *METRICS])
        writer.writerows([row.series, row.method, row.trained_on, *row.values.values()] for row in [*rows, *means])
    with whole_file(folder / "slices.csv") as temporary, temporary.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["series", "method", "slice", *SLICE_METRICS])
        for row in rows:
            length = max((len(values) for values in row.slices.values()), default=0)
            columns = [row.slices.get(name, np.full(length, np.nan)) for name in SLICE_METRICS]
            numbered = enumerate(zip(*columns, strict=True))
            writer.writerows([row.series, row.method, k, *values] for k, values in numbered)
    return screen_table(means, series=len({row.series for row in rows}), missing=missing or {})


def mean_rows(rows: Sequence[Row]) -> list[Row]:
    """Mean over series of every method, in the order in which methods came; slices are put one after the other.

    Metrics of whole series have the series' values in place of slices'.
    """
    means = []
    for method in dict.fromkeys(row.method for row in rows):
        own = [row for row in rows if row.method == method]
        values = {name: _mean([row.values[name] for row in own]) for name in METRICS}
        names = [name for name in SLICE_METRICS if all(name in row.slices for row in own)]
        slices = {name: np.concatenate([row.slices[name] for row in own]) for name in names}
        slices |= {name: np.array([row.values[name] for row in own]) for name in SERIES_METRICS}
        trained_on = ", ".join(sorted({row.trained_on for row in own}))
        means.append(Row("mean", method, trained_on, values, slices, own[0].kind))
    return means


def best_baseline(means: Sequence[Row], metric: str = KEY_METRIC) -> Row | None:
    """Return the baseline that is best by a metric, the one to beat; None when there is no baseline.

    One that is missing on some of the series is not compared: its mean is of other series.
    """
    most = max((_length(row, metric) for row in means), default=0)
    baselines = [
        row
        for row in means
        if row.kind == "baseline" and math.isfinite(row.values[metric]) and _length(row, metric) == most
    ]
    if not baselines:
        return None
    sign = 1 if metric in LOWER_IS_BETTER else -1
    return min(baselines, key=lambda row: sign * row.values[metric])


def significance(means: Sequence[Row]) -> list[dict[str, Any]]:
    """Ours against every baseline and against its ablations, paired over all slices, for each of COMPARED."""
    ours = next((row for row in means if row.method == RESTORED), None)
    if ours is None:
        return []
    found = []
    for metric in COMPARED:
        best = best_baseline(means, metric)
        for other in means:
            lengths = [_length(row, metric) for row in (ours, other)]
            if other is ours or other.kind == "reference" or lengths[0] != lengths[1] or not lengths[0]:
                continue
            result = compare(ours.slices[metric], other.slices[metric], lower_is_better=metric in LOWER_IS_BETTER)
            found.append(
                {
                    "metric": metric,
                    "ours": ours.method,
                    "against": other.method,
                    "best_baseline": other is best,
                    **_finite(vars(result)),
                }
            )
    return found


def _length(row: Row, metric: str) -> int:
    return len(row.slices.get(metric, ()))


def screen_table(means: Sequence[Row], *, series: int, missing: Mapping[str, str] | None = None) -> str:
    """Return the means as text of at most 80 columns, with the ranges and whether the series were trained on."""
    lines = [f"{'method':<18}" + "".join(f"{title:>11}" for title in _COLUMNS.values())]
    for row in means:
        cells = [f"{row.values[name]:.4f}" if name == "ssim_1000" else f"{row.values[name]:.2f}" for name in _COLUMNS]
        lines.append(f"{row.method:<18}" + "".join(f"{_dash(cell):>11}" for cell in cells))
    lines += [f"{name}: {reason}"[:80] for name, reason in (missing or {}).items()]
    for result in significance(means):
        if result["metric"] == KEY_METRIC and result["best_baseline"]:
            p_value = "too few slices" if result["p_value"] is None else f"p {result['p_value']:.2g}"
            lines.append(
                f"{RESTORED} against {result['against']}: {result['mean_difference']:+.2f} HU in body over "
                f"{result['pairs']} slices, {p_value}"
            )
    lines.append(f"PSNR and SSIM on [-1000, 1000] HU, data range 2000 HU; mean of {series} series;")
    lines.append(f"these series: {means[0].trained_on}")
    return "\n".join(lines)


def _mean(values: Sequence[float] | np.ndarray) -> float:
    finite = [float(value) for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else float("nan")


def _spread(row: Row) -> dict[str, float | None]:
    """Standard deviation over slices; of the mean's series metrics over series."""
    deviations = {name: values[np.isfinite(values)] for name, values in row.slices.items()}
    return _finite({name: float(np.std(values, ddof=1)) for name, values in deviations.items() if len(values) > 1})


def _worst(row: Row) -> dict[str, float | None]:
    """The worst slice's value."""
    finite = {name: values[np.isfinite(values)] for name, values in row.slices.items() if name in SLICE_METRICS}
    return {
        name: float(values.max() if name in LOWER_IS_BETTER else values.min())
        for name, values in finite.items()
        if len(values)
    }


def _plain(row: Row) -> dict[str, Any]:
    """JSON has no infinity (identical volumes) and no NaN (nothing to measure): both become null."""
    kept = {"series": row.series, "method": row.method, "kind": row.kind, "trained_on": row.trained_on}
    return {**kept, **_finite(row.values)}


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same with null for infinity and NaN, also within."""
    return {
        name: _finite(value)
        if isinstance(value, Mapping)
        else None
        if isinstance(value, float) and not math.isfinite(value)
        else value
        for name, value in values.items()
    }


def _dash(cell: str) -> str:
    return "-" if cell in ("nan", "inf") else cell
