import numpy as np
import pytest
from scipy.stats import wilcoxon

from bundle.evaluation.significance import compare

RNG = np.random.default_rng(0)


def test_a_constant_gain_is_significant_and_noise_is_not():
    other = RNG.normal(20, 3, 20)
    better = compare(other - RNG.uniform(0.5, 1, 20), other, lower_is_better=True)
    assert better.p_value < 1e-4 and better.better_share == 1 and better.mean_difference < -0.5
    same = [compare(other + RNG.normal(0, 1, 20), other, lower_is_better=True).p_value for _ in range(40)]
    assert np.mean(np.array(same) < 0.05) < 0.2


def test_the_test_is_wilcoxons_and_direction_follows_the_metric():
    a, b = RNG.normal(0, 1, 12), RNG.normal(0.3, 1, 12)
    lower, higher = (compare(a, b, lower_is_better=flag) for flag in (True, False))
    assert lower.p_value == pytest.approx(wilcoxon(a, b).pvalue)
    assert lower.better_share == pytest.approx(1 - higher.better_share)


def test_too_few_pairs_have_no_p_value_and_gaps_are_left_out():
    few = compare([1, 2, np.nan], [2, 3, 4], lower_is_better=True)
    assert few.pairs == 2 and few.p_value is None and few.mean_difference == -1
    assert compare([np.nan], [1], lower_is_better=True).pairs == 0
    assert compare([1.0] * 8, [1.0] * 8, lower_is_better=True).p_value is None
    with pytest.raises(ValueError, match="same slices"):
        compare([1], [1, 2], lower_is_better=True)
