"""Line integrals of the attenuation of a CT slice: how many photons each ray loses."""

import numpy as np

from bundle.degrade.projector import FIRST_ANGLE, ParallelBeam, forward
from bundle.units import AIR_HU

WATER_MU_PER_MM = 0.0193  # water at the 70 keV or so that a 120 kV scan amounts to (NIST XCOM)
COARSE = 2  # line integrals vary slowly: projecting at half the resolution changes the noise by under 1 %
COARSE_VIEWS = 4


def line_integrals(
    slice_hu: np.ndarray, *, spacing_mm: tuple[float, float], views: int
) -> tuple[np.ndarray, ParallelBeam]:
    """Line integrals of a slice (H, W) HU at half the resolution and a quarter of the `views`, with their beam."""
    mu = np.maximum(slice_hu.astype(np.float32) - AIR_HU, 0) * np.float32(WATER_MU_PER_MM / 1000)
    # An odd size gets one more row or column: the shift of half a pixel is nothing to a variance.
    mu = np.pad(mu, [(0, -size % COARSE) for size in mu.shape], mode="edge")
    rows, columns = mu.shape[0] // COARSE, mu.shape[1] // COARSE
    mu = mu.reshape(rows, COARSE, columns, COARSE).mean(axis=(1, 3))
    coarse_mm = (COARSE * float(spacing_mm[0]), COARSE * float(spacing_mm[1]))
    beam = ParallelBeam(shape=(rows, columns), spacing_mm=coarse_mm, views=views // COARSE_VIEWS, bin_mm=max(coarse_mm))
    return forward(mu, beam=beam), beam


def refine(integrals: np.ndarray, coarse: ParallelBeam, *, beam: ParallelBeam) -> np.ndarray:
    """Interpolate line integrals (views, bins) from the views and bins of `coarse` to those of `beam`."""
    view = (np.arange(beam.views) + FIRST_ANGLE) * (coarse.views / beam.views) - FIRST_ANGLE
    position_mm = (np.arange(beam.bins) - (beam.bins - 1) / 2) * beam.bin_mm
    position = position_mm / coarse.bin_mm + (coarse.bins - 1) / 2
    by_view = _interpolate(integrals, view, axis=0)
    return _interpolate(by_view, position, axis=1)


def _interpolate(values: np.ndarray, position: np.ndarray, *, axis: int) -> np.ndarray:
    """Linear interpolation along `axis`, held constant beyond the ends."""
    position = np.clip(position, 0, values.shape[axis] - 1)
    lower = np.minimum(position.astype(int), max(values.shape[axis] - 2, 0))
    upper = np.minimum(lower + 1, values.shape[axis] - 1)
    part = np.expand_dims((position - lower).astype(np.float32), 1 - axis)
    return values.take(lower, axis) * (1 - part) + values.take(upper, axis) * part
