"""Thick slices of thin ones: averaged with a slice sensitivity profile, then interpolated back onto the thin grid.

A thick slice is the integral of the patient along z, weighted by the slice sensitivity profile, whose full width at
half maximum is the slice thickness (IEC 61223-3-5; AAPM TG-233, 2019). Here the thin slices stand for the patient, each
constant over its spacing, and the profile is integrated exactly over each of them; nothing is ever subsampled. All of
it is one matrix along z, so that it is linear, has an exact adjoint, and what it does to noise is known.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import erf

PROFILES = ("box", "triangle", "gaussian")
_GAUSSIAN_FWHM = 2 * math.sqrt(2 * math.log(2))
_REACH = {"box": 0.5, "triangle": 1.0, "gaussian": 1.5}  # in thicknesses, to where the profile is cut off
_EPSILON_MM = 1e-6


@dataclass(frozen=True, kw_only=True)
class ThickSlices:
    """Thick slices of one thickness and distance, somewhere along z.

    Args:
        thickness_mm: full width at half maximum of the slice sensitivity profile; no more than the thin spacing
            changes nothing.
        increment_mm: distance of thick slices; None is the thickness: slices without gap or overlap.
        offset_mm: centre of some thick slice, from the centre of the series' first thin slice; None puts the first
            thick slice over the first thin ones.
        profile: 'box' (thin slices averaged, as scanners reconstruct), 'triangle' or 'gaussian'.
    """

    thickness_mm: float
    increment_mm: float | None = None
    offset_mm: float | None = None
    profile: str = "box"

    def __post_init__(self) -> None:
        if not self.thickness_mm > 0:
            raise ValueError(f"thickness_mm must be above 0, not {self.thickness_mm}")
        if self.increment_mm is not None and not self.increment_mm > 0:
            raise ValueError(f"increment_mm must be above 0, not {self.increment_mm}")
        if self.profile not in PROFILES:
            raise ValueError(f"profile must be one of {', '.join(PROFILES)}, not '{self.profile}'")

    def changes(self, step_mm: float) -> bool:
        """Whether slices of that distance are thin enough to be made thicker."""
        return self.thickness_mm > step_mm + _EPSILON_MM

    def margin(self, step_mm: float) -> int:
        """How many thin slices beyond a region take part in it."""
        if not self.changes(step_mm):
            return 0
        return math.ceil((self._increment_mm + _REACH[self.profile] * self.thickness_mm) / step_mm) + 1

    def centres_mm(self, count: int, step_mm: float, *, first: int = 0) -> np.ndarray:
        """Centres of the thick slices among thin ones number `first` to `first + count - 1`, mm along z, at least one.

        Args:
            count: thin slices.
            step_mm: their distance.
            first: number of the first in its series.
        """
        increment = self._increment_mm
        offset = (self.thickness_mm - step_mm) / 2 if self.offset_mm is None else self.offset_mm
        low, high = first * step_mm, (first + count - 1) * step_mm
        lowest = math.ceil((low - offset - _EPSILON_MM) / increment)
        numbers = np.arange(lowest, math.floor((high - offset + _EPSILON_MM) / increment) + 1)
        return offset + numbers * increment if len(numbers) else np.array([(low + high) / 2])

    def slab_weights(self, count: int, step_mm: float, *, first: int = 0) -> np.ndarray:
        """Weights (thick slices, thin slices), float64, whose rows add up to 1: a constant stays what it is."""
        edges = (first + np.arange(count + 1) - 0.5) * step_mm
        centres = self.centres_mm(count, step_mm, first=first)
        below = _cumulated((edges - centres[:, None]) / self.thickness_mm, self.profile)
        weights = np.diff(below, axis=1)
        return weights / weights.sum(axis=1, keepdims=True)

    def whole(self, count: int, step_mm: float, *, first: int = 0) -> np.ndarray:
        """Which of the thick slices do not reach beyond the thin ones, bool (thick slices,), to their full width."""
        low, high = (first - 0.5) * step_mm - _EPSILON_MM, (first + count - 0.5) * step_mm + _EPSILON_MM
        centres, half = self.centres_mm(count, step_mm, first=first), self.thickness_mm / 2
        return (centres - half >= low) & (centres + half <= high)

    def matrix(self, count: int, step_mm: float, *, first: int = 0) -> np.ndarray:
        """From thin slices to thick ones interpolated linearly onto the thin grid, float32 (count, count).

        Beyond the first and last thick slice the nearest one stands.
        """
        if not self.changes(step_mm):
            return np.eye(count, dtype=np.float32)
        centres = self.centres_mm(count, step_mm, first=first)
        thin = (first + np.arange(count)) * step_mm
        return (linear_weights(centres, thin) @ self.slab_weights(count, step_mm, first=first)).astype(np.float32)

    def apply(self, volume: np.ndarray, *, step_mm: float, first: int = 0) -> np.ndarray:
        """The thick series on the thin grid, float32, of thin slices (H, W, D)."""
        volume = np.asarray(volume, np.float32)
        if not self.changes(step_mm):
            return volume.copy()
        return volume @ self.matrix(volume.shape[2], step_mm, first=first).T

    def adjoint(self, volume: np.ndarray, *, step_mm: float, first: int = 0) -> np.ndarray:
        """The transpose of `apply`, float32 (H, W, D)."""
        volume = np.asarray(volume, np.float32)
        return volume @ self.matrix(volume.shape[2], step_mm, first=first)

    @property
    def _increment_mm(self) -> float:
        return self.thickness_mm if self.increment_mm is None else self.increment_mm


def linear_weights(known: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Weights (wanted, known), float64, of linear interpolation between ascending positions, constant beyond them."""
    weights = np.zeros((len(wanted), len(known)))
    if len(known) == 1:
        weights[:] = 1
        return weights
    place = np.clip(np.searchsorted(known, wanted, side="right") - 1, 0, len(known) - 2)
    part = np.clip((wanted - known[place]) / (known[place + 1] - known[place]), 0, 1)
    rows = np.arange(len(wanted))
    weights[rows, place] = 1 - part
    weights[rows, place + 1] += part
    return weights


def _cumulated(position: np.ndarray, profile: str) -> np.ndarray:
    """Integral of a profile of full width at half maximum 1 up to `position`."""
    position = np.clip(position, -_REACH[profile], _REACH[profile])
    if profile == "box":
        return position + 0.5
    if profile == "triangle":
        return 0.5 + position - 0.5 * position * np.abs(position)
    return 0.5 * (1 + np.asarray(erf(position * _GAUSSIAN_FWHM / math.sqrt(2))))
