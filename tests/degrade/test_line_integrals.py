import numpy as np
import pytest

from bundle.degrade.line_integrals import WATER_MU_PER_MM, line_integrals, refine
from bundle.degrade.projector import ParallelBeam


def ellipse(semi_rows_mm: float, semi_columns_mm: float, *, spacing: tuple[float, float], size: int) -> np.ndarray:
    rows = (np.arange(size) - (size - 1) / 2) * spacing[0] / semi_rows_mm
    columns = (np.arange(size) - (size - 1) / 2) * spacing[1] / semi_columns_mm
    return np.where(rows[:, None] ** 2 + columns**2 < 1, 0.0, -1000.0).astype(np.float32)


@pytest.mark.parametrize("size", [127, 128])
def test_line_integrals_are_chords_of_water(size):
    hu = ellipse(80, 80, spacing=(1.0, 2.0), size=size)
    integrals, beam = line_integrals(hu, spacing_mm=(1.0, 2.0), views=80)
    assert integrals.shape == (20, beam.bins)
    # Views along the rows see the ellipse cut by the image's upper and lower edge; the others see the chord.
    expected = min(160, size) * WATER_MU_PER_MM
    assert integrals[0].max() == pytest.approx(expected, rel=0.05)
    assert integrals[10].max() == pytest.approx(160 * WATER_MU_PER_MM, rel=0.05)


def test_refining_keeps_a_sinogram_that_is_linear_in_bin():
    coarse = ParallelBeam(shape=(32, 32), spacing_mm=(2.0, 2.0), views=20, bin_mm=2.0)
    fine = ParallelBeam(shape=(64, 64), spacing_mm=(1.0, 1.0), views=80, bin_mm=1.0)
    position = (np.arange(coarse.bins) - (coarse.bins - 1) / 2) * 2.0
    refined = refine(np.tile(position.astype(np.float32), (20, 1)), coarse, beam=fine)
    expected = np.clip((np.arange(fine.bins) - (fine.bins - 1) / 2) * 1.0, position[0], position[-1])
    assert refined.shape == (80, fine.bins)
    np.testing.assert_allclose(refined, np.tile(expected, (80, 1)), atol=1e-4)
