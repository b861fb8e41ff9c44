"""Low-dose CT from a given scan: the noise that fewer photons would have added, in HU.

The model is that of Yu et al. (JCAT 36, 2012) and Zeng et al. (IEEE Trans. Nucl. Sci. 62, 2015), for an image
instead of raw data: project the scan, take per ray the variance of the logarithm of the counts,

    exp(p) / N0                          quantum (Poisson counts of mean N0 exp(-p)),
    electronic_noise^2 exp(2 p) / N0^2   electronic (a constant standard deviation in counts),

and reconstruct noise of that variance alone, so that the anatomy never passes through the projector. A dose
fraction d divides N0; as the given scan already holds the noise of d = 1, what is missing has the variances
(1/d - 1) and (1/d^2 - 1) times the above: unit noises are drawn once and scaled by the roots of those.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bundle.degrade.line_integrals import COARSE_VIEWS, WATER_MU_PER_MM, line_integrals, refine
from bundle.degrade.projector import ParallelBeam, filtered_back_projection
from bundle.metrics.noise import noise_level

PADDING_HU = -1500.0  # below it a voxel was never measured (-2000, -3024 are usual) and stays without noise
MIN_COUNTS = 10.0  # scanners filter rays with fewer photons (Hsieh, Med. Phys. 25, 1998), where the log fails
CALIBRATION_SLICES = 3
CALIBRATION_FACTOR = 8.0  # an own noise further than this from the imitated exposure's is no CT noise (a phantom's)


@dataclass(frozen=True, kw_only=True)
class Scanner:
    """What decides how much noise a scan has and how it looks.

    Args:
        photons_per_ray: unattenuated photons per ray at full dose; None is automatic exposure control.
        electronic_noise: standard deviation of the read-out in photon counts. With 5, a ray of 25 photons has as
            much electronic as quantum noise. Exposure control leaves a dense ray about 2000 photons: electronic
            noise adds 1 % to its variance at full dose and 11 % at a tenth, and shows as streaks along the few
            denser ones. The low-dose literature uses variances from 10 up; not measured on a scanner.
        views: angles over half a turn.
        hann_cutoff_per_mm: where the Hann window on the ramp reaches zero, 1/mm; 0 is no window. It stands for
            the reconstruction kernel, which knows no pixels, hence the unit. 0.95 gives the mean noise frequency
            (0.30 to 0.41 per mm) measured in soft tissue of standard kernels (B, B41s, STANDARD, STD+).
        bowtie_radius_mm: radius of the water cylinder behind which a bowtie filter makes the exposure even: it takes
            away what the cylinder would not have, and beyond its edge as much as in its middle. None is no filter.
        calibrate_noise: choose the exposure so that unit quantum noise is as strong as the given scan's own noise:
            a fraction d of its dose then has 1/d of its own variance in all. Not with `photons_per_ray`.
    """

    photons_per_ray: float | None = None
    electronic_noise: float = 5.0
    views: int = 720
    hann_cutoff_per_mm: float = 0.95
    bowtie_radius_mm: float | None = None
    calibrate_noise: bool = False

    def __post_init__(self) -> None:
        if self.photons_per_ray is not None and self.photons_per_ray <= 0:
            raise ValueError(f"photons_per_ray must be above 0, not {self.photons_per_ray}")
        if self.photons_per_ray is not None and self.calibrate_noise:
            raise ValueError("photons_per_ray and calibrate_noise both decide the exposure: give one of them")
        if self.electronic_noise < 0:
            raise ValueError(f"electronic_noise must not be negative, not {self.electronic_noise}")
        if self.views < COARSE_VIEWS:
            raise ValueError(f"views must be at least {COARSE_VIEWS}, not {self.views}")
        if self.hann_cutoff_per_mm < 0:
            raise ValueError(f"hann_cutoff_per_mm must not be negative, not {self.hann_cutoff_per_mm}")
        if self.bowtie_radius_mm is not None and self.bowtie_radius_mm <= 0:
            raise ValueError(f"bowtie_radius_mm must be above 0, not {self.bowtie_radius_mm}")


def unit_noise(
    slice_hu: np.ndarray,
    *,
    spacing_mm: tuple[float, float],
    rng: np.random.Generator,
    photons: float,
    scanner: Scanner,
) -> tuple[np.ndarray, np.ndarray]:
    """Quantum and electronic noise of one slice at unit strength.

    Args:
        slice_hu: (H, W) HU; values below -1000 count as air.
        spacing_mm: distance of rows and of columns; they may differ.
        rng: source of all randomness.
        photons: unattenuated photons per ray of the given scan.
        scanner: the rest of the physics.

    Returns:
        Two images (H, W) float32 in HU; zero where `slice_hu` is padding.
    """
    beam = ParallelBeam(
        shape=(slice_hu.shape[0], slice_hu.shape[1]),
        spacing_mm=(float(spacing_mm[0]), float(spacing_mm[1])),
        views=scanner.views,
        bin_mm=float(min(spacing_mm)),
    )
    integrals = refine(*line_integrals(slice_hu, spacing_mm=spacing_mm, views=scanner.views), beam=beam)
    if scanner.bowtie_radius_mm is not None:
        integrals = integrals + _bowtie(beam, scanner.bowtie_radius_mm)
    inverse_counts = np.exp(np.minimum(integrals, np.log(max(photons / MIN_COUNTS, 1.0)))) / np.float32(photons)
    noise = np.empty(integrals.shape, np.complex64)  # two real sinograms in one, see back_project
    noise.real = rng.standard_normal(integrals.shape, np.float32) * np.sqrt(inverse_counts)
    noise.imag = rng.standard_normal(integrals.shape, np.float32) * (scanner.electronic_noise * inverse_counts)
    image = filtered_back_projection(noise, beam=beam, hann_cutoff_per_mm=scanner.hann_cutoff_per_mm)
    image *= np.float32(1000 / WATER_MU_PER_MM)
    image[slice_hu < PADDING_HU] = 0
    return np.ascontiguousarray(image.real), np.ascontiguousarray(image.imag)


def unit_noise_volume(
    volume_hu: np.ndarray,
    *,
    spacing_mm: tuple[float, ...],
    seed: int,
    scanner: Scanner,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Unit noise of every slice; slice k depends on (seed, k) and itself only, not on the order of work.

    Args:
        volume_hu: (H, W, D) HU.
        spacing_mm: distance of rows and columns (what follows is ignored).
        seed: not negative.
        scanner: without `photons_per_ray`, the middle slice decides the exposure of all.
        progress: called with (slices done, slices in all).

    Returns:
        Quantum and electronic noise, each (H, W, D) float16 HU (a relative rounding of 0.05 %).
    """
    in_plane = (float(spacing_mm[0]), float(spacing_mm[1]))
    photons = exposure(volume_hu, spacing_mm=in_plane, scanner=scanner)
    quantum = np.empty(volume_hu.shape, np.float16)
    electronic = np.empty(volume_hu.shape, np.float16)
    depth = volume_hu.shape[2]
    for k in range(depth):
        images = unit_noise(
            volume_hu[:, :, k],
            spacing_mm=in_plane,
            rng=np.random.default_rng([seed, k]),
            photons=photons,
            scanner=scanner,
        )
        quantum[:, :, k], electronic[:, :, k] = images
        if progress is not None:
            progress(k + 1, depth)
    return quantum, electronic


def apply_dose(
    volume_hu: np.ndarray, quantum: np.ndarray, electronic: np.ndarray, *, dose: float | np.ndarray
) -> np.ndarray:
    """The scan at a fraction of its own dose, float32 HU of the same shape; unchanged where the dose is 1.

    Args:
        volume_hu: (H, W, D).
        quantum: unit quantum noise, (H, W, D).
        electronic: unit electronic noise, (H, W, D).
        dose: one fraction, or one per slice (D,): a tube current that changes along the scan.
    """
    doses = np.asarray(dose, np.float64)
    if not ((doses > 0) & (doses <= 1)).all():
        raise ValueError(f"dose must be above 0 and at most 1, not {dose}")
    degraded = np.array(volume_hu, dtype=np.float32)
    if (doses < 1).any():
        degraded += np.sqrt(1 / doses - 1).astype(np.float32) * quantum.astype(np.float32)
        degraded += np.sqrt(1 / doses**2 - 1).astype(np.float32) * electronic.astype(np.float32)
    return degraded


def exposure(volume_hu: np.ndarray, *, spacing_mm: tuple[float, float], scanner: Scanner) -> float:
    """Unattenuated photons per ray of the given scan (H, W, D).

    Automatic exposure control is imitated by N0 = 9e5 exp(0.6 (p95 - 6)), p95 being the 95th percentile of the
    middle slice's line integrals: dense patients get more photons, but not enough to even out their noise.
    With it, quarter dose adds 18 to 29 HU (standard deviation) to soft tissue of ordinary series, more with arms down.
    With `calibrate_noise` the photons are then scaled by the ratio of the unit quantum noise to the scan's own.
    """
    if scanner.photons_per_ray is not None:
        return float(scanner.photons_per_ray)
    middle = volume_hu[:, :, volume_hu.shape[2] // 2]
    integrals, _ = line_integrals(middle, spacing_mm=spacing_mm, views=scanner.views)
    photons = float(9e5 * np.exp(0.6 * (np.percentile(integrals, 95) - 6)))
    if not scanner.calibrate_noise:
        return photons
    imitated = photons
    for _ in range(2):  # the level is a median, linear only among noises of a like strength: the second is exact
        ratio = _unit_to_own_noise(volume_hu, spacing_mm=spacing_mm, photons=photons, scanner=scanner)
        photons = float(np.clip(photons * ratio**2, imitated / CALIBRATION_FACTOR**2, imitated * CALIBRATION_FACTOR**2))
    return photons


def _bowtie(beam: ParallelBeam, radius_mm: float) -> np.ndarray:
    """Line integrals (bins,) of a bowtie filter: with those of a centred water cylinder they are even."""
    place_mm = (np.arange(beam.bins) - (beam.bins - 1) / 2) * beam.bin_mm
    through_mm = 2 * np.sqrt(np.maximum(radius_mm**2 - place_mm**2, 0))
    return ((2 * radius_mm - through_mm) * WATER_MU_PER_MM).astype(np.float32)


def _unit_to_own_noise(
    volume_hu: np.ndarray, *, spacing_mm: tuple[float, float], photons: float, scanner: Scanner
) -> float:
    """Level of unit quantum noise over that of the scan's own noise, both measured at the same places."""
    depth = volume_hu.shape[2]
    chosen = np.unique(np.linspace(0.2, 0.8, CALIBRATION_SLICES) * (depth - 1) + 0.5).astype(int)
    scan = np.asarray(volume_hu[:, :, np.unique(chosen)], np.float32)
    rng = np.random.default_rng(0)  # the measure must not depend on the seed of the noise itself
    units = [
        unit_noise(scan[:, :, k], spacing_mm=spacing_mm, rng=rng, photons=photons, scanner=scanner)[0]
        for k in range(scan.shape[2])
    ]
    own = noise_level(scan)
    both = noise_level(scan + np.stack(units, axis=2))
    unit = np.sqrt(np.maximum(both**2 - own**2, 0))
    return float(np.median(unit) / np.median(own))
