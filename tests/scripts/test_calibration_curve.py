"""The calibration's curve: what is normal lies on the normal one."""

import numpy as np
import pytest
from scipy.special import erf
from script_modules import load_script

from bundle.restoration.registry import Calibration


@pytest.fixture(scope="module")
def script():
    return load_script("calibration_curve")


def test_errors_of_the_calibrated_deviation_lie_on_the_normal_curve(script, tmp_path):
    rng = np.random.default_rng(0)
    deviation, noise = rng.gamma(4.0, 2.0, 40_000), np.full(40_000, 15.0)
    calibration = Calibration(scale=0.8, floor=0.3, constant_hu=2.0, known=True)
    factor, missed_hu = calibration.factors(noise, samples=8)
    error = np.abs(rng.standard_normal(40_000)) * np.hypot(factor * deviation, missed_hu)
    normal = erf(script.DEVIATIONS / np.sqrt(2))
    right = script.coverage(error, deviation, noise, calibration, samples=8)
    np.testing.assert_allclose(right, normal, atol=0.01)
    wide = script.coverage(error / 2, deviation, noise, calibration, samples=8)
    assert (wide[1:-1] > normal[1:-1]).all(), "a deviation twice too large covers too much"
    script.write({"a": right}, tmp_path)
    assert (tmp_path / "calibration.png").stat().st_size > 5000
    assert len((tmp_path / "calibration.csv").read_text().splitlines()) == 1 + len(script.DEVIATIONS)
