"""The floor: a target with noise of its own cannot be predicted better than a part of that noise."""

from collections.abc import Mapping

import numpy as np

from bundle.degrade.composition import LOW_DOSE
from bundle.evaluation.measures import Target
from bundle.evaluation.methods import Problem
from bundle.metrics.regions import noise_magnitude


def floor_values(problem: Problem, target: Target, of_input: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """RMSE and PSNR that no method can beat on average, slice by slice.

    Empty without soft tissue to measure in, for real pairs, whose noises are independent, and where more than the dose
    was changed: what thick slices or a blur take away is no noise that was added, and how much of it can be had back is
    not known.

    Let sigma be the target's own noise and e the noise that was added, independent of it and of the same texture.
    Who knew the anatomy exactly and saw target + e would still err by sigma e / sqrt(sigma^2 + e^2): the share
    e^2 / (sigma^2 + e^2) of the target's noise cannot be told from the added one. The factor
    sigma / sqrt(sigma^2 + e^2) is measured in homogeneous soft tissue and applied to the input's error everywhere.

    Args:
        problem: target and poor series.
        target: where to measure.
        of_input: the input's slice metrics.
    """
    if not only_dose(problem) or not target.squares:
        return {}
    own = noise_magnitude(problem.target_hu, target.squares)
    added = noise_magnitude(problem.degraded_hu - problem.target_hu, target.squares)
    factor = floor_hu(own, added) / added if added > 0 else 1.0
    values = {name: of_input[name] * factor for name in ("rmse_hu", "rmse_hu_body")}
    values["psnr_1000"] = of_input["psnr_1000"] - 20 * np.log10(factor)
    return values


def only_dose(problem: Problem) -> bool:
    """Whether the poor series is the target with simulated noise and nothing else."""
    return bool(problem.degradation) and all(step["kind"] == LOW_DOSE for step in problem.degradation)


def floor_hu(own_noise_hu: float, added_noise_hu: float) -> float:
    """Return sigma e / sqrt(sigma^2 + e^2)."""
    return own_noise_hu * added_noise_hu / float(np.hypot(own_noise_hu, added_noise_hu))
