"""The classical baselines' best parameters, chosen on validation series and written down."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bundle.configuration import set_exit_code
from bundle.errors import BundleError, ExitCode
from bundle.evaluation.chosen import SCHEMA
from bundle.evaluation.classical import classical_method, expand
from bundle.evaluation.methods import Method, Problem
from bundle.evaluation.problems import make_problem
from bundle.files import require_writable, write_json
from bundle.metrics.image import rmse_hu
from bundle.metrics.masks import body_mask
from bundle.progress import Progress
from bundle.restoration.region import apply_difference
from bundle.restoration.worklist import SeriesDataset

FILE = "parameters.json"


def choose_parameters(
    dataset: SeriesDataset,
    *,
    grids: Mapping[str, Mapping[str, Sequence[float]]],
    folder: str | Path,
    tuned_on: Mapping[str, Any] | None = None,
) -> str:
    """Try every point of every grid on every series and write parameters.json; return the choice as text.

    The choice is the point of least RMSE in the body relative to the input's, the mean over series. The best of each
    series alone is written down as well: a baseline that is told the answer.

    Args:
        dataset: series to validate on, 'image' degraded and 'label' the target.
        grids: by filter, by parameter, the values.
        folder: where parameters.json goes.
        tuned_on: what the series were degraded by, and how many slices they had: kept beside the choice.

    Raises:
        BundleError: when no series can be used, or a grid names an unknown filter.
    """
    folder = require_writable(Path(folder), option="output_dir")
    points = {name: expand(grid) for name, grid in grids.items()}
    methods = {name: [classical_method(name, point) for point in points[name]] for name in points}
    errors: dict[str, dict[str, list[float]]] = {name: {} for name in points}
    missing: dict[str, str] = {}
    failed: dict[str, str] = {}
    with Progress("choosing parameters", total=len(dataset) * len(points), unit="filter") as progress:
        for index in range(len(dataset)):
            item = dataset[index]
            try:
                problem = make_problem(item)
            except BundleError as error:
                failed[item["case"].key] = str(error)
                continue
            body = body_mask(problem.target_hu)
            before = rmse_hu(problem.degraded_hu, problem.target_hu, body if body.any() else None)
            for name in points:
                try:
                    if name not in missing:
                        found = [_error(method, problem, body) / before for method in methods[name]]
                        errors[name][problem.key] = found
                except BundleError as error:
                    if error.exit_code != ExitCode.USER:  # a signal is nobody's failure
                        raise
                    missing[name] = str(error)
                progress.update(note=name)
    if not any(errors.values()):
        raise BundleError("no parameters could be chosen: " + "; ".join({*failed.values(), *missing.values()}))
    chosen = {name: points[name][_best(found)] for name, found in errors.items() if found}
    by_series = {
        key: {name: points[name][int(np.argmin(found[key]))] for name, found in errors.items() if key in found}
        for key in sorted({key for found in errors.values() for key in found})
    }
    content = {
        "schema": SCHEMA,
        "metric": "RMSE in the body mask divided by the input's; strengths in units of the input's noise level",
        "tuned_on": dict(tuned_on or {}),
        "chosen": chosen,
        "chosen_by_series": by_series,
        "tried": {
            name: [
                {**point, "relative_rmse": {key: round(values[i], 5) for key, values in found.items()}}
                for i, point in enumerate(points[name])
            ]
            for name, found in errors.items()
        },
        "at_the_end_of_the_grid": [
            *_at_the_end(chosen, grids),
            *(f"{key}: {said}" for key, own in by_series.items() for said in _at_the_end(own, grids)),
        ],
        "missing": missing,
        "failed": failed,
    }
    write_json(folder / FILE, content)
    if failed:
        set_exit_code(ExitCode.PARTIAL)
    lines = [f"{name:<12}{_spoken(point)}" for name, point in chosen.items()]
    return "\n".join([*lines, *(f"{name:<12}{reason}" for name, reason in missing.items())])


def _error(method: Method, problem: Problem, body: np.ndarray) -> float:
    difference = method.estimate(problem).volume_hu - problem.degraded_hu
    restored = apply_difference(problem.degraded_hu, difference, strength=1.0)
    return rmse_hu(restored, problem.target_hu, body if body.any() else None)


def _best(found: Mapping[str, Sequence[float]]) -> int:
    return int(np.argmin(np.mean(list(found.values()), axis=0)))


def _at_the_end(chosen: Mapping[str, Any], grids: Mapping[str, Mapping[str, Sequence[float]]]) -> list[str]:
    """Choices at the border of their grid: a wider grid might have a better one. A single value has no border."""
    return [
        f"{name} {key} {value:g}"
        for name, point in chosen.items()
        for key, value in point.items()
        if len(grids[name][key]) > 1 and value in (min(grids[name][key]), max(grids[name][key]))
    ]


def _spoken(point: Mapping[str, float]) -> str:
    return ", ".join(f"{key} {value:g}" for key, value in point.items())
