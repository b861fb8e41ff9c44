"""What a perfect restoration would read: a target's own noise enters some measures, and no restoration can help it.

Edges are found, and brought into line, on the target, whose noise has sharpened some of them; and its noise is part of
both its detail and the residual. So even the anatomy itself, free of noise, reads as wider than the target and as if
some structure had been removed. How much is measured where the truth is known: a restoration is taken for it.
"""

from dataclasses import replace

import numpy as np

from bundle.evaluation.floor import only_dose
from bundle.evaluation.measures import Target
from bundle.evaluation.methods import Problem
from bundle.metrics.regions import noise_magnitude

METRICS = ("edge_surface_percent", "edge_inner_percent", "residual_structure")


def truth_values(problem: Problem, target: Target, restored_hu: np.ndarray) -> dict[str, float]:
    """METRICS of a truth without noise against a target and a poor series that are made of it; {} where that fails.

    The truth is `restored_hu`. Its target has noise as strong as the real one's in homogeneous soft tissue, its poor
    series the noise that was added besides. Both are the added noise mirrored, along columns and along rows, so that
    they depend neither on each other nor on what is left of the noise in the restoration.

    Args:
        problem: target and poor series; only of less dose, for whatever else was done is no noise.
        target: where to measure.
        restored_hu: HU (H, W, D), a restoration of the problem.
    """
    if not only_dose(problem) or not target.squares:
        return {}
    added = problem.degraded_hu - problem.target_hu
    level = noise_magnitude(added, target.squares)
    if level == 0:
        return {}
    own = np.flip(added, 1) * (noise_magnitude(problem.target_hu, target.squares) / level)
    made = replace(problem, target_hu=restored_hu + own, degraded_hu=restored_hu + own + np.flip(added, 0))
    values = Target(made.target_hu, spacing_mm=made.spacing_mm).series_values(restored_hu, made.degraded_hu)
    return {name: values[name] for name in METRICS}
