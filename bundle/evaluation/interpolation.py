"""Thick slices onto a thin grid by interpolation: what a user would do without a network.

The poor series of the thick-slice task lies on the thin grid already, interpolated linearly. No information is lost
by that: the thick slices follow from it exactly, and a cubic spline through them is the other baseline.
"""

from collections.abc import Sequence

import numpy as np
from scipy.interpolate import CubicSpline

from bundle.degrade.composition import THICK_SLICES, parse_kinds
from bundle.degrade.slabs import ThickSlices, linear_weights
from bundle.errors import BundleError
from bundle.evaluation.methods import Method, Problem
from bundle.restoration.data_consistency import DataConsistency


def interpolation_methods(degradation: str | Sequence[str] | None) -> list[Method]:
    """Return interpolations, linear and cubic, where the degradation makes slices thicker, else nothing."""
    if THICK_SLICES not in parse_kinds(degradation):
        return []
    return [
        Method("linear", "baseline", "linear interpolation of the thick slices", lambda p: p.degraded_hu.copy()),
        Method("cubic", "baseline", "cubic spline through the thick slices", _cubic),
        Method(
            "cubic_consistent",
            "baseline",
            "the same, changed so that its averages are the thick slices",
            lambda p: consistent(p, _cubic(p)),
        ),
    ]


def cubic(volume_hu: np.ndarray, slabs: ThickSlices, *, step_mm: float) -> np.ndarray:
    """Cubic spline (not-a-knot) through thick slices; beyond the first and the last the nearest one stands.

    Args:
        volume_hu: thick slices interpolated linearly onto the thin grid (H, W, D).
        slabs: where they lie.
        step_mm: distance of thin slices.

    Raises:
        BundleError: with fewer than two thick slices.
    """
    thin = np.arange(volume_hu.shape[2]) * step_mm
    centres = slabs.centres_mm(len(thin), step_mm)
    if len(centres) < 2:
        raise BundleError("the series is too short for two thick slices", hint="use more of it with --max_slices -1")
    thick = volume_hu.astype(np.float64) @ np.linalg.pinv(linear_weights(centres, thin)).T
    spline = CubicSpline(centres, thick, axis=2)
    return spline(np.clip(thin, centres[0], centres[-1])).astype(np.float32)


def consistent(problem: Problem, restored_hu: np.ndarray) -> np.ndarray:
    """Thin slices (H, W, D) that give the problem's thick ones again, as `run inference` writes them."""
    if problem.slabs is None:
        return restored_hu
    count, step_mm = restored_hu.shape[2], problem.spacing_mm[2]
    consistency = DataConsistency.of_slabs(problem.slabs, count=count, step_mm=step_mm)
    return restored_hu + consistency.change(restored_hu - problem.degraded_hu, problem.degraded_hu)


def _cubic(problem: Problem) -> np.ndarray:
    slabs = problem.slabs
    if slabs is None:
        raise BundleError("the series' slices were not made thicker: they are as thick as asked for, or more")
    return cubic(problem.degraded_hu, slabs, step_mm=problem.spacing_mm[2])
