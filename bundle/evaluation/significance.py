"""Whether a difference between two methods is more than chance: paired over the same slices."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

MIN_PAIRS = 6  # with fewer, even a difference of one sign throughout cannot have p < 0.05


@dataclass(frozen=True)
class Comparison:
    """A paired comparison of two methods by one metric.

    Attributes:
        pairs: number of slices that both have.
        mean_difference: ours minus the other's.
        better_share: share of the slices on which ours is better.
        p_value: two-sided Wilcoxon signed-rank test; None with too few pairs.
    """

    pairs: int
    mean_difference: float
    better_share: float
    p_value: float | None


def compare(
    ours: Sequence[float] | np.ndarray, other: Sequence[float] | np.ndarray, *, lower_is_better: bool
) -> Comparison:
    """Compare two methods slice by slice (Wilcoxon, Biometrics 1, 1945).

    Neighbouring slices of a series are alike, so they count for less than their number: read the p-value together
    with the number of series.

    Args:
        ours: one value a slice; slices without a finite value on both sides are left out.
        other: the same slices.
        lower_is_better: True for errors.

    Raises:
        ValueError: when the two differ in length.
    """
    a, b = np.asarray(ours, float), np.asarray(other, float)
    if a.shape != b.shape:
        raise ValueError(f"both methods need the same slices, not {a.shape} and {b.shape}")
    both = np.isfinite(a) & np.isfinite(b)
    difference = a[both] - b[both]
    if not difference.size:
        return Comparison(0, float("nan"), float("nan"), None)
    better = difference < 0 if lower_is_better else difference > 0
    p_value = None
    if difference.size >= MIN_PAIRS and np.any(difference != 0):
        p_value = float(stats.wilcoxon(difference).pvalue)
    return Comparison(int(difference.size), float(difference.mean()), float(better.mean()), p_value)
