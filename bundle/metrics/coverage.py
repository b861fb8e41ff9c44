"""How often the truth lies within k deviations, beside how often a normal variable does."""

import numpy as np

# Of a normal variable: erf(k / sqrt(2)).
NORMAL_COVERAGE = {1: 0.6827, 2: 0.9545, 3: 0.9973}


def coverage(error: np.ndarray, deviation: np.ndarray, k: float, mask: np.ndarray | None = None) -> float:
    """Return the share of voxels whose |error| is at most k deviations.

    Args:
        error: estimate minus truth, any shape.
        deviation: standard deviation in the same unit and shape; voxels where it is 0 have none and do not count.
        k: width of the interval in deviations.
        mask: voxels that count; None: all.

    Raises:
        ValueError: when no voxel counts.
    """
    counted = deviation > 0 if mask is None else mask & (deviation > 0)
    if not counted.any():
        raise ValueError("no voxel has a deviation here")
    return float(np.mean(np.abs(error[counted]) <= k * deviation[counted]))
