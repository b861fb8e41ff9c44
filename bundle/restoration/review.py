"""What a restoration did to a series, in numbers that need no reference, and warnings where they are out of bounds.

Everything is taken slice by slice, so that a long study needs no more memory than a short one.
"""

from typing import Any

import numpy as np
from scipy import ndimage

from bundle.metrics.consistency import slice_noise_inconsistency
from bundle.metrics.noise import noise_level
from bundle.metrics.residual import structure_in_residual
from bundle.restoration.thick_again import ThickAgain

LOW_FREQUENCY_PIXELS = 8.0  # standard deviation of the Gaussian that a change is averaged with
LOW_FREQUENCY_BOUND_HU = 10.0  # local means that move further are no noise any more
STRUCTURE_BOUND = 0.1  # share of the anatomy's detail that may leave with the noise
NOISE_BOUND = 6.0  # a change beyond so many times the slice's noise ...
LEAST_BOUND_HU = 30.0  # ... and beyond this is reported
_SAMPLED_SLICES = 16
_QUANTILE = 0.999


class Review:
    """Collects a series slice by slice.

    Args:
        depth: number of slices.
        again: of thin slices made of thick ones, whose local means rightly move: what makes them thick again.
    """

    def __init__(self, depth: int, *, again: ThickAgain | None = None) -> None:
        self._again = again
        self._sampled = set(np.unique(np.linspace(0, depth - 1, _SAMPLED_SLICES).round().astype(int)).tolist())
        self._pairs: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._noise: list[tuple[float, float]] = []
        self._low_frequency: list[float] = []
        self._beyond: list[int] = []
        self._sum = self._largest = 0.0
        self._changed = self._voxels = self._touchable = 0

    def add(self, k: int, before_hu: np.ndarray, after_hu: np.ndarray, region: np.ndarray) -> None:
        """Take in slice k.

        Args:
            k: its number.
            before_hu: the input (H, W).
            after_hu: the result (H, W).
            region: bool (H, W): where a restoration may touch it.
        """
        change = after_hu - before_hu
        noise = float(noise_level(before_hu[:, :, None])[0])
        self._noise.append((noise, float(noise_level(after_hu[:, :, None])[0])))
        self._sum += float(change.sum(dtype=np.float64))
        self._largest = max(self._largest, float(np.abs(change).max()))
        self._changed += int(np.count_nonzero(change))
        self._voxels += change.size
        self._touchable += int(region.sum())
        self._beyond.append(int((np.abs(change) > max(NOISE_BOUND * noise, LEAST_BOUND_HU)).sum()))
        compared = [(change, region)] if self._again is None else self._again.add(k, before_hu, after_hu, region)
        self._low_frequency += [low_frequency_shift(difference, inside) for difference, inside in compared]
        if k in self._sampled:
            self._pairs.append((before_hu, after_hu, region))

    @property
    def noise_hu(self) -> np.ndarray:
        """Noise level of every slice of the input, HU (D,)."""
        return np.array([before for before, _ in self._noise], np.float32)

    def summary(self) -> dict[str, Any]:
        """The numbers, HU unless the key says otherwise, and `warnings`: what is out of bounds, in words."""
        before, after = (np.array(levels, np.float32) for levels in zip(*self._noise, strict=True))
        structure = self._structure()
        shift = max(self._low_frequency, default=None)
        found: dict[str, Any] = {
            "noise_hu_before": round(float(np.median(before)), 3),
            "noise_hu_after": round(float(np.median(after)), 3),
            "mean_change_hu": round(self._sum / self._voxels, 4),
            "largest_change_hu": round(self._largest, 2),
            "changed_fraction": round(self._changed / self._voxels, 4),
            "low_frequency_shift_hu": None if shift is None else round(shift, 3),
            "voxels_beyond_bound": sum(self._beyond),
            "fraction_beyond_bound": round(sum(self._beyond) / max(self._touchable, 1), 7),
            "slices_most_beyond_bound": [int(k) for k in np.argsort(self._beyond)[::-1][:3] if self._beyond[k]],
            "change_bound": f"{NOISE_BOUND:g} times the slice's noise, at least {LEAST_BOUND_HU:g} HU",
            "structure_in_residual": None if structure is None else round(structure, 4),
        }
        if len(before) > 1:
            found["noise_inconsistency_before"] = round(slice_noise_inconsistency(before), 4)
            found["noise_inconsistency_after"] = round(slice_noise_inconsistency(after), 4)
        return {**found, "warnings": _warnings(shift, structure)}

    def _structure(self) -> float | None:
        pairs = [pair for pair in self._pairs if pair[2].any()]
        if not pairs:
            return None
        before, after, region = (np.stack(slices, axis=2) for slices in zip(*pairs, strict=True))
        try:
            return structure_in_residual(before - after, after, region)
        except ValueError:  # nothing stands out of the noise: no structure that could have gone
            return None


def low_frequency_shift(change_hu: np.ndarray, region: np.ndarray) -> float:
    """Largest local mean (its 99.9 % quantile) of a change (H, W) HU inside a region (H, W); 0 without a region.

    A mean over many noise correlation lengths: noise that is taken away hardly moves it, a shift of tissue does.
    """
    if not region.any():
        return 0.0
    weight = ndimage.gaussian_filter(region.astype(np.float32), LOW_FREQUENCY_PIXELS, truncate=3.0)
    mean = ndimage.gaussian_filter(change_hu * region, LOW_FREQUENCY_PIXELS, truncate=3.0) / np.maximum(weight, 1e-3)
    return float(np.quantile(np.abs(mean[region]), _QUANTILE))


def _warnings(shift: float | None, structure: float | None) -> list[str]:
    found = []
    if shift is not None and shift > LOW_FREQUENCY_BOUND_HU:
        found.append(f"local mean HU moved by up to {shift:.1f} HU (bound {LOW_FREQUENCY_BOUND_HU:g} HU)")
    if structure is not None and structure > STRUCTURE_BOUND:
        found.append(
            f"what was removed holds {structure:.0%} of the anatomy's detail (bound {STRUCTURE_BOUND:.0%}): "
            "look at the difference image"
        )
    return found
