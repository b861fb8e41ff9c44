import numpy as np
import pytest

from bundle.degrade.line_integrals import WATER_MU_PER_MM
from bundle.degrade.low_dose import CALIBRATION_FACTOR, Scanner, apply_dose, exposure, unit_noise, unit_noise_volume
from bundle.metrics.noise import noise_level

SIZE = 128


def ellipse(semi_rows_mm: float, semi_columns_mm: float, *, spacing=(2.0, 2.0), size=SIZE) -> np.ndarray:
    rows = (np.arange(size) - (size - 1) / 2) * spacing[0] / semi_rows_mm
    columns = (np.arange(size) - (size - 1) / 2) * spacing[1] / semi_columns_mm
    return np.where(rows[:, None] ** 2 + columns**2 < 1, 0.0, -1000.0).astype(np.float32)


def draw(slice_hu: np.ndarray, count: int, *, spacing=(2.0, 2.0), photons=1e5, **scanner) -> np.ndarray:
    """Noise images (count, 2, H, W)."""
    settings = Scanner(**{"views": 360, "hann_cutoff_per_mm": 0.0} | scanner)
    return np.stack(
        [
            unit_noise(slice_hu, spacing_mm=spacing, rng=np.random.default_rng(k), photons=photons, scanner=settings)
            for k in range(count)
        ]
    )


def centre(images: np.ndarray, radius: int = 10) -> np.ndarray:
    middle = [size // 2 for size in images.shape[-2:]]
    return images[..., middle[0] - radius : middle[0] + radius, middle[1] - radius : middle[1] + radius]


def predicted_std_hu(variance: float, *, bin_mm: float, views: int, cutoff: float) -> float:
    """Analytic noise of FBP with linear interpolation, for white noise of `variance` per ray.

    A pixel is pi / views times a sum over views of filtered samples; a sample interpolated at a fraction t,
    evenly spread in [0, 1], has the mean power |H|^2 (2 + cos(2 pi f bin)) / 3.
    """
    frequency = (np.arange(4000) + 0.5) / 4000 * 0.5 / bin_mm
    window = np.cos(0.5 * np.pi * np.minimum(frequency / cutoff, 1)) ** 2 if cutoff else 1.0
    power = (frequency * window) ** 2 * (2 + np.cos(2 * np.pi * frequency * bin_mm)) / 3
    integral = 2 * power.mean() * 0.5 / bin_mm * bin_mm
    return 1000 / WATER_MU_PER_MM * np.sqrt(np.pi**2 / views * variance * integral)


@pytest.mark.parametrize("cutoff", [0.0, 0.2])
def test_noise_at_the_centre_of_a_water_cylinder_is_the_predicted_one(cutoff):
    radius_mm, photons, sigma = 90.0, 1e5, 20.0
    images = draw(ellipse(radius_mm, radius_mm), 30, photons=photons, hann_cutoff_per_mm=cutoff, electronic_noise=sigma)
    inverse_counts = np.exp(2 * radius_mm * WATER_MU_PER_MM) / photons
    quantum, electronic = np.sqrt(np.mean(centre(images) ** 2, axis=(0, 2, 3)))
    options = {"bin_mm": 2.0, "views": 360, "cutoff": cutoff}
    assert quantum == pytest.approx(predicted_std_hu(inverse_counts, **options), rel=0.1)
    assert electronic == pytest.approx(predicted_std_hu((sigma * inverse_counts) ** 2, **options), rel=0.1)


@pytest.mark.parametrize("bowtie_mm", [None, 90.0, 130.0])
def test_noise_near_the_edge_of_a_water_cylinder_is_the_predicted_one(bowtie_mm):
    """At a place r from the centre, a view at angle t meets the ray at s = r cos(t); variances add up over views."""
    radius_mm, place_mm, photons = 90.0, 70.0, 1e5
    images = draw(ellipse(radius_mm, radius_mm), 40, photons=photons, electronic_noise=0.0, bowtie_radius_mm=bowtie_mm)
    s = place_mm * np.cos(np.linspace(0, np.pi, 1000))
    water = 2 * np.sqrt(radius_mm**2 - s**2)
    bowtie = 0 if bowtie_mm is None else 2 * bowtie_mm - 2 * np.sqrt(bowtie_mm**2 - s**2)
    variance = np.mean(np.exp((water + bowtie) * WATER_MU_PER_MM)) / photons
    rows, columns = np.indices((SIZE, SIZE)) * 2.0 - (SIZE - 1)
    ring = np.abs(np.hypot(rows, columns) - place_mm) < 3
    measured = np.sqrt(np.mean(images[:, 0][:, ring] ** 2))
    assert measured == pytest.approx(predicted_std_hu(variance, bin_mm=2.0, views=360, cutoff=0.0), rel=0.1)


def test_a_bowtie_of_the_cylinders_size_makes_its_noise_even():
    def edge_to_centre(**settings):
        images = draw(ellipse(90, 90), 30, electronic_noise=0.0, **settings)[:, 0]
        rows, columns = np.indices((SIZE, SIZE)) * 2.0 - (SIZE - 1)
        ring = np.abs(np.hypot(rows, columns) - 80) < 3
        return images[:, ring].std() / centre(images).std()

    s = 80 * np.cos(np.linspace(0, np.pi, 1000))
    rays = np.exp((2 * np.sqrt(90**2 - s**2) - 2 * 90) * WATER_MU_PER_MM)  # variance relative to the middle ray's
    assert edge_to_centre() == pytest.approx(np.sqrt(rays.mean()), rel=0.1)
    assert edge_to_centre(bowtie_radius_mm=90.0) == pytest.approx(1.0, abs=0.1)


def test_noise_has_no_bias():
    images = centre(draw(ellipse(90, 90), 20))
    assert abs(images[:, 0].mean()) < 0.05 * images[:, 0].std()


def test_noise_is_streaked_along_the_long_axis():
    noise = centre(draw(ellipse(50, 115), 8)[:, 0], radius=24)
    along = noise.reshape(8, 48, 4, 12).mean(axis=3)  # means over 12 columns: the long axis
    across = noise.reshape(8, 4, 12, 48).mean(axis=2)
    assert along.var() > 2 * across.var()


def test_quantum_variance_goes_with_one_over_dose_minus_one():
    volume = np.zeros((SIZE, SIZE, 3), np.float32) + ellipse(90, 90)[:, :, None]
    scanner = Scanner(photons_per_ray=1e5, electronic_noise=0.0, views=180)
    quantum, electronic = unit_noise_volume(volume, spacing_mm=(2, 2, 5), seed=5, scanner=scanner)
    assert np.abs(electronic).max() < 1e-4  # rounding of the FFT they share
    variances = {d: np.var(apply_dose(volume, quantum, electronic, dose=d) - volume) for d in (0.5, 0.25, 0.1)}
    for dose, variance in variances.items():
        assert variance / variances[0.5] == pytest.approx(1 / dose - 1, rel=0.03)


def test_two_steps_down_are_one():
    """Half of half the dose is a quarter, in the variance of both noises."""
    for power in (1, 2):
        half_from_full = 1 / 0.5**power - 1
        quarter_from_half = (1 / 0.5**power - 1) / 0.5**power
        assert half_from_full + quarter_from_half == pytest.approx(1 / 0.25**power - 1)
    hu = ellipse(60, 60)
    full, half = draw(hu, 1, photons=1e5)[0], draw(hu, 1, photons=5e4)[0]
    np.testing.assert_allclose(half[0], full[0] * np.sqrt(2), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(half[1], full[1] * 2, rtol=1e-3, atol=1e-3)


def test_full_dose_is_the_identity():
    rng = np.random.default_rng(0)
    volume = rng.normal(0, 100, (8, 8, 2)).astype(np.float32)
    noise = rng.normal(0, 10, (8, 8, 2)).astype(np.float16)
    result = apply_dose(volume, noise, noise, dose=1)
    np.testing.assert_array_equal(result, volume)
    assert result.dtype == np.float32
    assert not np.shares_memory(result, volume)


@pytest.mark.parametrize("dose", [0, -0.5, 1.5, float("nan"), np.array([0.0])])
def test_an_impossible_dose_is_refused(dose):
    volume = np.zeros((4, 4, 1), np.float32)
    with pytest.raises(ValueError, match="dose must be"):
        apply_dose(volume, volume, volume, dose=dose)


def test_the_same_seed_replays_and_slices_do_not_depend_on_each_other():
    scanner = Scanner(views=60, photons_per_ray=1e5)
    volume = np.repeat(ellipse(60, 60)[:, :, None], 4, axis=2)
    first = unit_noise_volume(volume, spacing_mm=(2, 2), seed=3, scanner=scanner)
    again = unit_noise_volume(volume, spacing_mm=(2, 2), seed=3, scanner=scanner)
    start = unit_noise_volume(volume[:, :, :2], spacing_mm=(2, 2), seed=3, scanner=scanner)
    other = unit_noise_volume(volume, spacing_mm=(2, 2), seed=4, scanner=scanner)
    for k in range(2):
        np.testing.assert_array_equal(first[k], again[k])
        np.testing.assert_array_equal(first[k][:, :, :2], start[k])
        assert not np.array_equal(first[k], other[k])
        assert not np.array_equal(first[k][:, :, 0], first[k][:, :, 1])
        assert first[k].dtype == np.float16
        assert first[k].shape == volume.shape


def test_padding_counts_as_air_and_stays_without_noise():
    hu = ellipse(60, 60)
    padded = hu.copy()
    padded[:20] = -3024
    expected, noise = draw(hu, 1)[0], draw(padded, 1)[0]
    assert not noise[:, :20].any()
    np.testing.assert_array_equal(noise[:, 20:], expected[:, 20:])


def test_metal_does_not_overflow():
    hu = ellipse(100, 110)
    hu[50:70, 50:70] = 30000
    images = draw(hu, 1, photons=1e4)
    assert np.isfinite(images).all()
    assert np.abs(images).max() < 60000


def test_non_square_pixels_get_the_noise_of_square_ones():
    square = draw(ellipse(80, 80), 10, hann_cutoff_per_mm=0.2)
    tall = draw(ellipse(80, 80, spacing=(4.0, 2.0)), 10, spacing=(4.0, 2.0), hann_cutoff_per_mm=0.2)
    assert tall.shape == square.shape
    middle = np.s_[:, 0, SIZE // 2 - 5 : SIZE // 2 + 5, SIZE // 2 - 10 : SIZE // 2 + 10]
    assert tall[middle].std() == pytest.approx(square[middle].std(), rel=0.1)


def test_exposure_follows_density_unless_given():
    thin, thick = ellipse(60, 60)[:, :, None], ellipse(110, 110)[:, :, None]
    automatic = [exposure(v, spacing_mm=(2, 2), scanner=Scanner(views=80)) for v in (thin, thick)]
    assert automatic[0] < automatic[1]
    assert exposure(thin, spacing_mm=(2, 2), scanner=Scanner(photons_per_ray=5.0)) == 5.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"photons_per_ray": 0},
        {"electronic_noise": -1},
        {"views": 2},
        {"hann_cutoff_per_mm": -1},
        {"bowtie_radius_mm": 0},
    ],
)
def test_an_impossible_scanner_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Scanner(**wrong)


def test_progress_is_told():
    calls = []
    volume = np.full((16, 16, 3), -1000, np.float32)
    unit_noise_volume(
        volume, spacing_mm=(1, 1), seed=0, scanner=Scanner(views=8), progress=lambda *done: calls.append(done)
    )
    assert calls == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("own_hu", [8.0, 20.0])
def test_calibrated_noise_is_as_strong_as_the_scans_own(own_hu):
    scanner = Scanner(views=240, calibrate_noise=True)
    rng = np.random.default_rng(0)
    water = ellipse(100, 110, spacing=(1.0, 1.0), size=256)
    scan = np.stack([water + own_hu * rng.standard_normal(water.shape) for _ in range(5)], axis=2)
    quantum, electronic = unit_noise_volume(scan, spacing_mm=(1, 1), seed=1, scanner=scanner)
    # The levels of independent parts add in quadrature: at a dose d there is 1/d of the variance.
    for dose in (0.5, 0.25):
        degraded = apply_dose(scan, quantum, 0 * electronic, dose=dose)
        ratio = np.median(noise_level(degraded)) / np.median(noise_level(scan))
        assert ratio == pytest.approx(dose**-0.5, rel=0.06)


def test_calibration_leaves_a_phantom_without_noise_near_the_imitated_exposure():
    scan = np.repeat(ellipse(90, 100)[..., None], 2, axis=2)
    photons = {
        calibrated: exposure(scan, spacing_mm=(2, 2), scanner=Scanner(views=80, calibrate_noise=calibrated))
        for calibrated in (False, True)
    }
    assert photons[True] == pytest.approx(CALIBRATION_FACTOR**2 * photons[False])


def test_exposure_is_given_or_calibrated_not_both():
    with pytest.raises(ValueError, match="give one of them"):
        Scanner(photons_per_ray=1e5, calibrate_noise=True)
