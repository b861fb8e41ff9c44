"""The noise level of a degraded image, slice by slice, from levels measured once: nothing is measured per sample.

Independent parts add in quadrature. The scan's own noise and the simulated noise are followed apart through the steps,
since neighbouring slices of a scan share some of their noise, and those of the simulation none.
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from bundle.data.averaging import average
from bundle.data.prepared import PreparedCase
from bundle.data.reconstruction import Reconstruction
from bundle.degrade.blur import InPlaneBlur
from bundle.degrade.composition import LowDose, Steps
from bundle.degrade.slabs import ThickSlices
from bundle.metrics.noise import noise_level

_MEASURED = 4  # slices or slabs of a case


class NoiseLevels:
    """Noise levels of cases after degradations; what has to be measured is kept by case."""

    def __init__(self) -> None:
        self._slabs: dict[tuple[str, int], float] = {}
        self._filtered: dict[tuple[str, InPlaneBlur | Reconstruction], tuple[float, float]] = {}

    def __call__(
        self,
        case: PreparedCase,
        steps: Steps,
        region: slice,
        *,
        slices: int = 1,
        reconstruction: Reconstruction | None = None,
    ) -> np.ndarray:
        """Noise level in HU of slices of a case after `steps`.

        Args:
            case: what is degraded.
            steps: how.
            region: slices of the case.
            slices: how many neighbours of `region` are averaged to one before the steps.
            reconstruction: what kernel and pixels become after the steps.

        Returns:
            float32, one value for each slice or average.
        """
        margin = slices * sum(step.margin(case.spacing_mm[2]) for step in steps if isinstance(step, ThickSlices))
        start, stop = max(region.start - margin, 0), min(region.stop + margin, case.shape[2])
        wide, first = slice(start, stop), (region.start - start) // slices
        own = _averaged(case.noise_hu, wide, slices) * self.own_level(case, slices) ** 2
        added = np.zeros_like(own)
        for step in steps:
            if isinstance(step, LowDose):
                doses = step.doses(len(own), step_mm=case.spacing_mm[2] * slices, first=start // slices)
                # Simulated noise is independent from slice to slice, so that its variance falls as 1 / n.
                quantum, electronic = (
                    _averaged(level, wide, slices) / slices for level in (case.quantum_hu, case.electronic_hu)
                )
                added += (1 / doses - 1) * quantum + (1 / doses**2 - 1) * electronic
            elif isinstance(step, ThickSlices):
                weights = step.matrix(len(own), case.spacing_mm[2], first=start).astype(np.float64)
                shared = self._shared(case, step)
                own = shared * (weights @ own) + (1 - shared) * (weights**2 @ own)
                added = weights**2 @ added
            else:
                of_own, of_added = self._after(case, step, partial(step.apply, spacing_mm=case.spacing_mm))
                own, added = own * of_own**2, added * of_added**2
        if reconstruction not in (None, Reconstruction()):
            of_own, of_added = self._after(case, reconstruction, partial(reconstruction, spacing_mm=case.spacing_mm))
            own, added = own * of_own**2, added * of_added**2
        levels = np.sqrt(own + added).astype(np.float32)
        return levels[first : first + (region.stop - region.start) // slices]

    def own_level(self, case: PreparedCase, slices: int) -> float:
        """Noise level of the mean of `slices` neighbouring slices, relative to a single slice's.

        Measured, because slices that overlap or were interpolated share noise: it falls slower than 1 / sqrt(n).
        """
        if slices == 1:
            return 1.0
        key = (case.key, slices)
        if key not in self._slabs:
            starts = np.linspace(0, case.shape[2] - slices, _MEASURED).astype(int)
            ratios = []
            for start in starts:
                slab = np.asarray(case.image_hu[:, :, start : start + slices], np.float32)
                ratios.append(noise_level(average(slab, slices))[0] / np.sqrt(np.mean(noise_level(slab) ** 2)))
            self._slabs[key] = float(np.median(ratios))
        return self._slabs[key]

    def _shared(self, case: PreparedCase, step: ThickSlices) -> float:
        """Share c of the noise's variance that neighbours have in common: the mean of n has c + (1 - c) / n of it."""
        slices = min(max(round(step.thickness_mm / case.spacing_mm[2]), 1), case.shape[2])
        if slices < 2:
            return 1.0
        level = self.own_level(case, slices)
        return float(np.clip((level**2 - 1 / slices) / (1 - 1 / slices), 0, 1))

    def _after(
        self, case: PreparedCase, key: InPlaneBlur | Reconstruction, filtered: Callable[[np.ndarray], np.ndarray]
    ) -> tuple[float, float]:
        """Level after a filter within slices relative to before, of the scan's own noise and of the simulated noise."""
        if (case.key, key) not in self._filtered:
            chosen = np.unique(np.linspace(0, case.shape[2] - 1, _MEASURED + 2)[1:-1].astype(int))
            scan = np.asarray(case.image_hu[:, :, chosen], np.float32)
            after = filtered(scan)
            own = noise_level(after) / noise_level(scan)
            added = own
            if case.realisations:
                noise = np.asarray(case.noise(0)[0][:, :, chosen], np.float32)
                added = _excess(after, filtered(noise)) / np.maximum(_excess(scan, noise), 1e-6)
            self._filtered[case.key, key] = float(np.median(own)), float(np.median(added))
        return self._filtered[case.key, key]


def _averaged(levels: tuple[float, ...], region: slice, slices: int) -> np.ndarray:
    """Mean variance of every `slices` neighbours, float64."""
    variance = np.square(np.asarray(levels, np.float64)[region])
    return np.asarray(variance.reshape(-1, slices).mean(axis=1))


def _excess(image: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Level of a noise as it is seen on an image."""
    return np.sqrt(np.maximum(noise_level(image + noise) ** 2 - noise_level(image) ** 2, 0))
