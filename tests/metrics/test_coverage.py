import numpy as np
import pytest

from bundle.metrics.coverage import NORMAL_COVERAGE, coverage

GENERATOR = np.random.default_rng(0)
DEVIATION = GENERATOR.uniform(1, 30, (40, 50, 60))
ERROR = DEVIATION * GENERATOR.standard_normal(DEVIATION.shape)


@pytest.mark.parametrize("k", NORMAL_COVERAGE)
def test_normal_errors_are_covered_as_a_normal_variable_is(k):
    assert coverage(ERROR, DEVIATION, k) == pytest.approx(NORMAL_COVERAGE[k], abs=0.005)


def test_it_depends_on_the_ratio_alone_and_grows_with_k():
    assert coverage(7 * ERROR, 7 * DEVIATION, 1) == coverage(ERROR, DEVIATION, 1) == coverage(-ERROR, DEVIATION, 1)
    assert coverage(ERROR, DEVIATION, 0) == 0 < coverage(ERROR, DEVIATION / 2, 1) < coverage(ERROR, DEVIATION, 1)


def test_voxels_without_a_deviation_or_outside_the_mask_do_not_count():
    deviation, mask = DEVIATION.copy(), np.ones(DEVIATION.shape, bool)
    deviation[:20], mask[:, :25] = 0, False
    assert coverage(ERROR, deviation, 1, mask) == coverage(ERROR[20:, 25:], DEVIATION[20:, 25:], 1)
    for nothing in (np.zeros_like(mask), np.pad(mask[20:] & False, ((20, 0), (0, 0), (0, 0)))):
        with pytest.raises(ValueError, match="no voxel"):
            coverage(ERROR, deviation, 1, nothing)
