"""Noise from slice to slice: what flickers when a reader scrolls."""

import numpy as np


def slice_noise_inconsistency(levels_hu: np.ndarray) -> float:
    """Mean change of the noise level from a slice to the next, divided by the mean level; 0 is no flicker.

    After the idea of slice-wise noise level inconsistency (SNLI; Fang et al., CycleINR, arXiv 2404.04878):
    restored slices that are smoother than their neighbours. The formula is this one, not the paper's.

    Args:
        levels_hu: noise level of each slice (D,), see `noise.noise_level`.

    Raises:
        ValueError: with fewer than two slices.
    """
    levels = np.asarray(levels_hu, np.float64)
    if levels.size < 2:
        raise ValueError("one slice has no neighbour to be consistent with")
    return float(np.mean(np.abs(np.diff(levels))) / np.mean(levels))
