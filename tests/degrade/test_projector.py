import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from skimage.transform import radon

from bundle.degrade.projector import (
    ParallelBeam,
    back_project,
    filtered_back_projection,
    forward,
    ramp_response,
)


def square_beam(size: int = 129, *, spacing: float = 1.0, views: int = 90) -> ParallelBeam:
    return ParallelBeam(shape=(size, size), spacing_mm=(spacing, spacing), views=views, bin_mm=spacing)


def positions_mm(beam: ParallelBeam) -> np.ndarray:
    return (np.arange(beam.bins) - (beam.bins - 1) / 2) * beam.bin_mm


def disc(size: int, radius: float, *, spacing: float = 1.0, oversampling: int = 8) -> np.ndarray:
    fine = (np.arange(size * oversampling) - (size * oversampling - 1) / 2) * spacing / oversampling
    inside = (fine[:, None] ** 2 + fine**2 < radius**2).astype(np.float32)
    return inside.reshape(size, oversampling, size, oversampling).mean(axis=(1, 3))


@pytest.mark.parametrize(
    "beam",
    [
        square_beam(),
        ParallelBeam(shape=(40, 63), spacing_mm=(0.7, 0.7), views=31, bin_mm=0.7),
        ParallelBeam(shape=(40, 64), spacing_mm=(0.5, 0.9), views=60, bin_mm=1.3),
    ],
)
def test_back_projection_is_the_adjoint_of_projection(beam):
    rng = np.random.default_rng(0)
    x = rng.random(beam.shape, np.float32)
    y = rng.random((beam.views, beam.bins), np.float32)
    left = np.vdot(forward(x, beam=beam).astype(np.float64), y)
    right = np.vdot(x.astype(np.float64), back_project(y, beam=beam))
    assert left == pytest.approx(right, rel=1e-5)


def test_projection_agrees_with_skimage():
    beam = square_beam()
    rng = np.random.default_rng(1)
    image = gaussian_filter(disc(129, 40) + 0.3 * disc(129, 60) * rng.random((129, 129)), 1.5).astype(np.float32)
    image = np.roll(image, (9, -5), axis=(0, 1)) * disc(129, 62)  # off centre: orientation matters
    reference = radon(image, theta=np.rad2deg(beam.angles_rad), circle=True).T
    ours = forward(image, beam=beam)
    at = np.arange(129) - 64
    ours = np.stack([np.interp(at, positions_mm(beam), row) for row in ours])
    error = np.sqrt(np.mean((ours - reference) ** 2, axis=1)) / reference.max()
    assert np.quantile(error, 0.8) < 0.001
    assert error.max() < 0.025  # next to 45 degrees, see the module


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.8, 1.0)])
def test_projection_of_a_disc_is_its_chord(spacing):
    radius = 40.0
    beam = ParallelBeam(shape=(160, 128), spacing_mm=spacing, views=60, bin_mm=max(spacing))
    rows = (np.arange(160) - 79.5) * spacing[0]
    columns = (np.arange(128) - 63.5) * spacing[1]
    image = np.clip(radius - np.hypot(rows[:, None], columns) + 0.5, 0, 1).astype(np.float32)
    chord = 2 * np.sqrt(np.maximum(radius**2 - positions_mm(beam) ** 2, 0))
    error = forward(image, beam=beam) - chord
    assert np.sqrt(np.mean(error**2)) < 0.01 * 2 * radius


def test_projection_keeps_the_mass_of_every_view():
    beam = square_beam(65, spacing=0.7)
    image = np.random.default_rng(2).random((65, 65), np.float32)
    mass = forward(image, beam=beam).sum(axis=1) * beam.bin_mm
    np.testing.assert_allclose(mass, image.sum() * 0.7**2, rtol=1e-5)


def test_filtered_back_projection_inverts_projection():
    beam = ParallelBeam(shape=(256, 256), spacing_mm=(0.8, 0.8), views=360, bin_mm=0.8)
    mu = 0.0193
    image = disc(256, 70.0, spacing=0.8) * np.float32(mu)
    restored = filtered_back_projection(forward(image, beam=beam), beam=beam)
    inner = disc(256, 60.0, spacing=0.8) == 1
    hu = 1000 * (restored / mu - 1)
    assert abs(hu[inner].mean()) < 10
    assert hu[inner].std() < 20
    outer = (disc(256, 76.0, spacing=0.8) == 0) & (disc(256, 95.0, spacing=0.8) == 1)
    assert abs(1000 * restored[outer].mean() / mu) < 10


def test_a_complex_sinogram_is_two_real_ones():
    beam = square_beam(64, views=40)
    rng = np.random.default_rng(3)
    real, imaginary = rng.standard_normal((2, 40, beam.bins)).astype(np.float32)
    both = filtered_back_projection(real + 1j * imaginary, beam=beam, hann_cutoff_per_mm=0.4)
    np.testing.assert_allclose(both.real, filtered_back_projection(real, beam=beam, hann_cutoff_per_mm=0.4), atol=1e-5)
    np.testing.assert_allclose(
        both.imag, filtered_back_projection(imaginary, beam=beam, hann_cutoff_per_mm=0.4), atol=1e-5
    )


def test_ramp_is_the_frequency():
    frequency = np.abs(np.fft.fftfreq(1024, 0.7))
    np.testing.assert_allclose(ramp_response(1024, bin_mm=0.7), frequency, atol=1e-3)
    hann = ramp_response(1024, bin_mm=0.7, hann_cutoff_per_mm=0.5)
    assert (np.abs(hann[frequency >= 0.5]) < 1e-12).all()


def test_a_wrong_shape_is_refused():
    with pytest.raises(ValueError, match="image has shape"):
        forward(np.zeros((3, 4)), beam=square_beam(8))
    with pytest.raises(ValueError, match="sinogram has shape"):
        back_project(np.zeros((3, 4)), beam=square_beam(8))
