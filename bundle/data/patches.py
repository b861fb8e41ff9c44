"""Patches for training and slabs for validation; a sample is a pure function of (seed, epoch, index)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from bundle.data.averaging import SlabSampling, average
from bundle.data.prepared import PreparedCase
from bundle.data.splits import Part
from bundle.degrade.low_dose import apply_dose
from bundle.degrade.transforms import sample_dose
from bundle.errors import BundleError

_BODY_HU = -500.0
_BODY_FRACTION = 0.3  # a patch with less body than this is drawn again
_TRIES = 6


@dataclass(frozen=True, kw_only=True)
class DoseSampling:
    """How poor the degraded side of a pair is: dose log-uniform in `dose_range`, `clean_fraction` left as it is."""

    dose_range: Sequence[float] = (0.1, 1.0)
    clean_fraction: float = 0.07


class PatchDataset(Dataset):
    """Degraded and clean patches; an item is {image, label (1, H, W, D) HU, spacing_mm (3,), noise_level (D,)}.

    Args:
        data: prepared cases and their training slices.
        patch_size: H and W of a patch in pixels.
        num_slices: D of a patch.
        length: items per epoch.
        seed: with epoch and index it determines an item, whatever the worker, rank or resume.
        degradation: how the dose is drawn.
        slabs: how often neighbouring slices are averaged; None never.
        augment: flips and transposes.
    """

    def __init__(
        self,
        data: Sequence[Part],
        *,
        patch_size: int,
        num_slices: int,
        length: int,
        seed: int,
        degradation: DoseSampling | None = None,
        slabs: SlabSampling | None = None,
        augment: bool = True,
    ) -> None:
        self.parts = [part for part in data if _fits(part, patch_size, num_slices)]
        if data and not self.parts:
            raise BundleError(
                f"no series is as large as a patch of {patch_size} x {patch_size} x {num_slices}",
                hint="use a smaller patch_size or num_slices",
            )
        self.patch = (patch_size, patch_size, num_slices)
        self.length = length
        self.seed = seed
        self.degradation = degradation or DoseSampling()
        self.slabs = slabs or SlabSampling()
        self.augment = augment
        # Long series have more to teach, but not in proportion: neighbouring slices are alike.
        weights = np.array([(part.stop - part.start) ** 0.5 for part in self.parts])
        self.weights = weights / max(weights.sum(), 1.0)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, position: int | tuple[int, int]) -> dict[str, Any]:
        """Return item (epoch, index); a plain index is one of epoch 0."""
        part, rng = self._part(position)
        slices = self.slabs.draw(
            rng, spacing_mm=part.case.spacing_mm[2], slices=part.stop - part.start, wanted=self.patch[2]
        )
        region = self._region(part, slices, rng)
        low, high = self.degradation.dose_range
        dose = sample_dose(rng, low, high, self.degradation.clean_fraction)
        return self._cut(part.case, region, slices, dose, rng)

    def series_key(self, position: int | tuple[int, int]) -> str:
        """Key of the series that item (epoch, index) is cut from."""
        return self._part(position)[0].case.key

    def _part(self, position: int | tuple[int, int]) -> tuple[Part, np.random.Generator]:
        """The part that an item is cut from, and what draws all else about it."""
        epoch, index = position if isinstance(position, tuple) else (0, position)
        rng = np.random.default_rng([self.seed, epoch, index])
        return self.parts[rng.choice(len(self.parts), p=self.weights)], rng

    def _region(self, part: Part, slices: int, rng: np.random.Generator) -> tuple[slice, slice, slice]:
        """Draw where a patch of `slices` times as many slices lies, favouring body over air."""
        size = (self.patch[0], self.patch[1], self.patch[2] * slices)
        region = _region((0, 0, 0), size)
        for _ in range(_TRIES):
            height, width, _ = part.case.shape
            corner = (
                int(rng.integers(height - size[0] + 1)),
                int(rng.integers(width - size[1] + 1)),
                int(rng.integers(part.start, part.stop - size[2] + 1)),
            )
            region = _region(corner, size)
            if np.mean(part.case.image_hu[region][::4, ::4, ::slices] > _BODY_HU) >= _BODY_FRACTION:
                break
        return region

    def _cut(
        self,
        case: PreparedCase,
        region: tuple[slice, slice, slice],
        slices: int,
        dose: float,
        rng: np.random.Generator,
    ) -> dict[str, Any]:
        quantum, electronic = case.noise(int(rng.integers(case.realisations)))
        sign = rng.choice((-1.0, 1.0))  # noise is symmetric: each realisation serves twice
        label = average(case.image_hu[region], slices)
        noises = (sign * average(noise[region], slices) for noise in (quantum, electronic))
        image = apply_dose(label, *noises, dose=dose)
        levels = case.noise_level(dose, region[2], slices=slices, own_level=self.slabs.own_level(case, slices))
        if self.augment:
            turn = _Turn.draw(rng)
            image, label = turn(image), turn(label)
            levels = levels[::-1].copy() if turn.flips[2] else levels
        return {
            "image": torch.from_numpy(np.ascontiguousarray(image))[None],
            "label": torch.from_numpy(np.ascontiguousarray(label))[None],
            "spacing_mm": torch.tensor((*case.spacing_mm[:2], case.spacing_mm[2] * slices), dtype=torch.float32),
            "noise_level": torch.from_numpy(levels),
        }


class SlabDataset(Dataset):
    """Validation slabs: whole slices from the middle of each part, at one dose; items as PatchDataset's.

    Args:
        data: prepared cases and their validation slices.
        num_slices: most slices of a slab.
        dose: dose fraction of the degraded side.
        size: most rows and columns, from the middle; 0 for whole slices.
    """

    def __init__(self, data: Sequence[Part], *, num_slices: int, dose: float = 0.25, size: int = 0) -> None:
        self.parts = list(data)
        self.num_slices = num_slices
        self.dose = dose
        self.size = size

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return slab `index`."""
        part = self.parts[index]
        case = part.case
        rows, columns = (_middle(0, size, self.size or size) for size in case.shape[:2])
        region = (rows, columns, _middle(part.start, part.stop, self.num_slices))
        quantum, electronic = case.noise(0)
        label = np.asarray(case.image_hu[region], dtype=np.float32)
        image = apply_dose(label, _float(quantum[region]), _float(electronic[region]), dose=self.dose)
        return {
            "image": torch.from_numpy(image)[None],
            "label": torch.from_numpy(label)[None],
            "spacing_mm": torch.tensor(case.spacing_mm, dtype=torch.float32),
            "noise_level": torch.from_numpy(case.noise_level(self.dose, region[2])),
        }


@dataclass(frozen=True)
class _Turn:
    """A flip along each axis and a transpose of rows and columns."""

    flips: tuple[bool, bool, bool]
    transpose: bool

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "_Turn":
        draws = rng.random(4) < 0.5
        return cls((bool(draws[0]), bool(draws[1]), bool(draws[2])), bool(draws[3]))

    def __call__(self, volume: np.ndarray) -> np.ndarray:
        volume = np.flip(volume, axis=tuple(axis for axis in range(3) if self.flips[axis]))
        return volume.swapaxes(0, 1) if self.transpose else volume


def _fits(part: Part, patch_size: int, num_slices: int) -> bool:
    return min(part.case.shape[:2]) >= patch_size and part.stop - part.start >= num_slices


def _region(corner: tuple[int, int, int], size: tuple[int, int, int]) -> tuple[slice, slice, slice]:
    rows, columns, slices = (slice(start, start + length) for start, length in zip(corner, size, strict=True))
    return rows, columns, slices


def _middle(start: int, stop: int, most: int) -> slice:
    length = min(most, stop - start)
    first = start + (stop - start - length) // 2
    return slice(first, first + length)


def _float(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, dtype=np.float32)
