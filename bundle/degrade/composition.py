"""Degradations in any order: which there are, how their parameters are drawn, and how drawn ones are applied.

Drawing and applying are apart: `DegradationSampling.draw` gives `Steps`, plain numbers that can be kept and replayed;
`apply_steps` is a function of them alone.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from bundle.configuration import checked_number
from bundle.degrade.blur import InPlaneBlur
from bundle.degrade.low_dose import apply_dose
from bundle.degrade.slabs import PROFILES, ThickSlices
from bundle.errors import BundleError

LOW_DOSE, THICK_SLICES, KERNEL = "low_dose", "thick_slices", "kernel"
KINDS = (LOW_DOSE, THICK_SLICES, KERNEL)


@dataclass(frozen=True, kw_only=True)
class LowDose:
    """A dose fraction, with a tube current that may change along z.

    Args:
        dose: fraction of the scan's own dose, in (0, 1].
        current_amplitude: a: the dose of the slice at z is dose (1 + a cos(2 pi z / period + phase)), at most 1.
        current_period_mm: its period along z.
        current_phase: its phase.
        realisation: which of the cached noises.
        sign: 1 or -1: noise is symmetric, so that each realisation serves twice.
    """

    dose: float
    current_amplitude: float = 0.0
    current_period_mm: float = 200.0
    current_phase: float = 0.0
    realisation: int = 0
    sign: float = 1.0

    def doses(self, count: int, *, step_mm: float, first: int = 0) -> float | np.ndarray:
        """Dose fraction of slices `first` to `first + count - 1`: one number, or float64 (count,)."""
        if self.current_amplitude == 0 or self.dose >= 1:
            return self.dose
        z = (first + np.arange(count)) * step_mm
        current = 1 + self.current_amplitude * np.cos(2 * np.pi * z / self.current_period_mm + self.current_phase)
        return np.minimum(self.dose * current, 1.0)


Step: TypeAlias = LowDose | ThickSlices | InPlaneBlur
Steps: TypeAlias = tuple[Step, ...]
_KIND_OF = {LowDose: LOW_DOSE, ThickSlices: THICK_SLICES, InPlaneBlur: KERNEL}


def parse_kinds(degradation: str | Sequence[str] | None) -> tuple[str, ...]:
    """Kinds in order, of a config's 'low_dose', ['low_dose', 'thick_slices'], or 'none'.

    Raises:
        BundleError: when one is unknown or named twice.
    """
    named = [degradation] if degradation is None or isinstance(degradation, str) else list(degradation)
    kinds = tuple(str(name) for name in named if name is not None and str(name) != "none")
    for kind in kinds:
        if kind not in KINDS:
            raise BundleError(f"degradation '{kind}' is unknown", hint=f"there are {', '.join(KINDS)} and none")
    if len(set(kinds)) < len(kinds):
        raise BundleError(f"degradation names '{max(kinds, key=kinds.count)}' twice", hint="name each once, in order")
    return kinds


@dataclass(frozen=True, kw_only=True)
class DegradationSampling:
    """How poor the degraded side of a pair is.

    Args:
        degradation: kinds in order, as for `parse_kinds`. Noise before thick slices or blur is averaged as the image;
            noise after them is not.
        dose_range: smallest and largest dose fraction; drawn log-uniformly.
        clean_fraction: probability of no degradation at all, so that a model learns to leave good scans alone.
        current_amplitude: largest amplitude of the tube current along z; drawn uniformly from 0.
        slice_thickness_mm: thicknesses, drawn with equal probability; the place of the slices is drawn too.
        slice_profile: of thick slices.
        mtf50_per_mm: blurs, drawn with equal probability.
    """

    degradation: str | Sequence[str] | None = LOW_DOSE
    dose_range: Sequence[float] = (0.1, 1.0)
    clean_fraction: float = 0.07
    current_amplitude: float = 0.0
    slice_thickness_mm: Sequence[float] = (5.0,)
    slice_profile: str = "box"
    mtf50_per_mm: Sequence[float] = (0.3,)

    def __post_init__(self) -> None:
        parse_kinds(self.degradation)
        low, high = self.dose_range
        require_doses(low, high, self.clean_fraction)
        if not 0 <= self.current_amplitude < 1:
            raise ValueError(f"current_amplitude must be at least 0 and below 1, not {self.current_amplitude}")
        if self.slice_profile not in PROFILES:
            raise BundleError(f"slice_profile '{self.slice_profile}' is unknown", hint=f"use {' or '.join(PROFILES)}")
        for name in ("slice_thickness_mm", "mtf50_per_mm"):
            values = getattr(self, name)
            if not len(values) or not all(float(value) > 0 for value in values):
                raise BundleError(f"{name} must be a list of numbers above 0, not {values}")

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds in order."""
        return parse_kinds(self.degradation)

    def thickens(self, step_mm: float) -> bool:
        """Whether slices of that distance can be made worse: False where only thicker ones would do it."""
        return self.kinds != (THICK_SLICES,) or max(self.slice_thickness_mm) >= 1.5 * step_mm

    def draw(self, rng: np.random.Generator, *, realisations: int = 1) -> Steps:
        """Draw parameters; no steps for a clean sample.

        Args:
            rng: source of all randomness.
            realisations: noise realisations to choose from.
        """
        low, high = self.dose_range
        dose, clean = _draw_dose(rng, low, high, self.clean_fraction)
        realisation = int(rng.integers(max(realisations, 1)))
        sign = float(rng.choice((-1.0, 1.0)))
        steps: list[Step] = []
        for kind in self.kinds:
            if kind == LOW_DOSE:
                steps.append(self._low_dose(rng, dose, realisation, sign))
            elif kind == THICK_SLICES:
                thickness, part = float(rng.choice(self.slice_thickness_mm)), float(rng.random())
                steps.append(
                    ThickSlices(thickness_mm=thickness, offset_mm=part * thickness, profile=self.slice_profile)
                )
            else:
                steps.append(InPlaneBlur(mtf50_per_mm=float(rng.choice(self.mtf50_per_mm))))
        return () if clean else tuple(steps)

    def fixed(self, dose: float) -> Steps:
        """The same steps each time, for validation: a dose, even tube current, and the first of each list."""
        steps: dict[str, Step] = {
            LOW_DOSE: LowDose(dose=dose),
            THICK_SLICES: ThickSlices(thickness_mm=float(self.slice_thickness_mm[0]), profile=self.slice_profile),
            KERNEL: InPlaneBlur(mtf50_per_mm=float(self.mtf50_per_mm[0])),
        }
        return tuple(steps[kind] for kind in self.kinds)

    def _low_dose(self, rng: np.random.Generator, dose: float, realisation: int, sign: float) -> LowDose:
        if self.current_amplitude == 0:
            return LowDose(dose=dose, realisation=realisation, sign=sign)
        amplitude, period, phase = rng.random(3)
        return LowDose(
            dose=dose,
            current_amplitude=float(amplitude * self.current_amplitude),
            current_period_mm=float(100 + 300 * period),  # shoulders to hips: one to four swings in a trunk
            current_phase=float(2 * np.pi * phase),
            realisation=realisation,
            sign=sign,
        )


def sample_dose(rng: np.random.Generator, low: float, high: float, clean_fraction: float) -> float:
    """A dose fraction for one training sample.

    Args:
        rng: source of randomness.
        low: smallest dose, above 0.
        high: largest dose, at most 1.
        clean_fraction: probability of 1.0, the scan as it is, so that a model learns to leave good scans alone.

    Returns:
        Log-uniform in [low, high] (noise is a power of dose, so equal ratios should be equally likely), or 1.0.
    """
    require_doses(low, high, clean_fraction)
    return _draw_dose(rng, low, high, clean_fraction)[0]


def require_doses(low: float, high: float, clean_fraction: float) -> None:
    """Refuse doses that `sample_dose` could not draw.

    Raises:
        BundleError: when they are no numbers, or not 0 < low <= high <= 1, or the fraction is not within 0 and 1.
    """
    for dose in (low, high):
        checked_number("dose", dose, float, high=1)
    checked_number("clean_fraction", clean_fraction, float, low=0, high=1)
    if not 0 < low <= high:
        raise BundleError(f"dose must be above 0, and a range of doses rise: not {low} to {high}")


def _draw_dose(rng: np.random.Generator, low: float, high: float, clean_fraction: float) -> tuple[float, bool]:
    """The dose, and whether the sample shall be left as it is."""
    clean, position = rng.random(2)  # always two draws: what follows does not depend on which branch was taken
    if clean < clean_fraction:
        return 1.0, True
    return float(np.clip(np.exp(np.log(low) + position * (np.log(high) - np.log(low))), low, high)), False


def describe_steps(steps: Steps) -> list[dict[str, Any]]:
    """Steps as plain values, for the meta data of an image."""
    described = [{"kind": _KIND_OF[type(step)], **dataclasses.asdict(step)} for step in steps]
    return [{key: value for key, value in step.items() if value is not None} for step in described]


def margins(steps: Steps, spacing_mm: tuple[float, float, float]) -> tuple[int, int]:
    """How many pixels and how many slices beyond a region take part in it."""
    pixels = sum(step.margin(spacing_mm) for step in steps if isinstance(step, InPlaneBlur))
    slices = sum(step.margin(spacing_mm[2]) for step in steps if isinstance(step, ThickSlices))
    return pixels, slices


def apply_steps(
    volume: np.ndarray,
    steps: Steps,
    *,
    spacing_mm: tuple[float, float, float],
    first: int = 0,
    noise: Callable[[int], tuple[np.ndarray, np.ndarray]] | None = None,
) -> np.ndarray:
    """The degraded volume, float32; the same to the bit for the same arguments, and a copy without steps.

    Args:
        volume: (H, W, D) HU.
        steps: what to do, in order.
        spacing_mm: along H, W and D.
        first: number of the volume's first slice in its series: thick slices and tube current lie along the series.
        noise: unit quantum and electronic noise (H, W, D) of a realisation; needed for low dose.
    """
    result = np.array(volume, np.float32)
    for step in steps:
        if isinstance(step, LowDose):
            if noise is None:
                raise ValueError("low dose needs noise realisations")
            signed = [np.float32(step.sign) * np.asarray(part, np.float32) for part in noise(step.realisation)]
            doses = step.doses(volume.shape[2], step_mm=spacing_mm[2], first=first)
            result = apply_dose(result, *signed, dose=doses)
        elif isinstance(step, ThickSlices):
            result = step.apply(result, step_mm=spacing_mm[2], first=first)
        else:
            result = step.apply(result, spacing_mm=spacing_mm)
    return result
