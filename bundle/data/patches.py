"""Patches for training and slabs for validation; a sample is a pure function of (seed, epoch, index)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.utils.data import Dataset

from bundle.data.averaging import SlabSampling, average
from bundle.data.conditions import Told, ToldSampling
from bundle.data.contrast import Contrast, ContrastSampling
from bundle.data.joining import FixedParts, PartSource, StreamedParts
from bundle.data.levels import NoiseLevels
from bundle.data.pixel_size import PixelSize
from bundle.data.prepared import PreparedCase
from bundle.data.reconstruction import Reconstruction, ReconstructionSampling
from bundle.data.splits import Part
from bundle.degrade.composition import (
    THICK_SLICES,
    DegradationSampling,
    Steps,
    apply_steps,
    describe_steps,
    margins,
)
from bundle.errors import BundleError

_BODY_HU = -500.0
_BODY_FRACTION = 0.3  # a patch with less body than this is drawn again
_TRIES = 6
# Items of epoch MEASURING + n are those of no epoch, of what there is at the start of epoch n: to measure the latent.
MEASURING = 2**31 - 1


class PatchDataset(Dataset):
    """Degraded and clean patches; an item is {image, label (1, H, W, D) HU, spacing_mm (3,), noise_level (D,)}.

    Args:
        data: prepared cases and their training slices, or archives that join while training runs.
        patch_size: H and W of a patch in pixels.
        num_slices: D of a patch.
        length: items per epoch.
        seed: with epoch and index it determines an item, whatever the worker, rank or resume.
        degradation: how the poor side is made; cases with a real poor partner have theirs instead.
        slabs: how often neighbouring slices are averaged; None never. Not where slices are made thicker, nor of pairs.
        contrast: how often contrast and noise are scaled down together; None never.
        reconstruction: how often kernel and pixels are those of another reconstruction; None never. Not of pairs.
        told: how far the spacing and the noise level that an item names may be off; None not at all.
        augment: flips and transposes.
    """

    def __init__(
        self,
        data: Sequence[Part] | StreamedParts,
        *,
        patch_size: int,
        num_slices: int,
        length: int,
        seed: int,
        degradation: DegradationSampling | None = None,
        slabs: SlabSampling | None = None,
        contrast: ContrastSampling | None = None,
        reconstruction: ReconstructionSampling | None = None,
        told: ToldSampling | None = None,
        augment: bool = True,
    ) -> None:
        self.degradation = degradation or DegradationSampling()
        self.levels = NoiseLevels()
        self.patch = (patch_size, patch_size, num_slices)
        self.length = length
        self.seed = seed
        self.slabs = SlabSampling() if slabs is None or THICK_SLICES in self.degradation.kinds else slabs
        self.contrast = contrast or ContrastSampling()
        self.reconstruction = reconstruction or ReconstructionSampling()
        self.told = told or ToldSampling()
        self.augment = augment
        self.source: PartSource
        if isinstance(data, StreamedParts):
            self.source = StreamedParts(data.stream, self._usable)
        else:
            self.source = FixedParts(self._require_usable(data))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, position: int | tuple[int, int]) -> dict[str, Any]:
        """Return item (epoch, index); a plain index is one of epoch 0."""
        patch = self._drawn(position)
        case = patch.part.case
        label, image = (
            patch.reconstruction(side, self.patch[0], spacing_mm=case.spacing_mm)
            for side in (
                average(case.image_hu[patch.region], patch.slices),
                _poor(case, patch.region, patch.steps, slices=patch.slices),
            )
        )
        levels = self._levels(patch)
        if self.augment:
            image, label = patch.turn(image), patch.turn(label)
            levels = levels[::-1].copy() if patch.turn.flips[2] else levels
        image, label = patch.contrast(image), patch.contrast(label)
        return {
            "image": torch.from_numpy(np.ascontiguousarray(image))[None],
            "label": torch.from_numpy(np.ascontiguousarray(label))[None],
            "spacing_mm": torch.tensor(patch.told.spacing_mm(patch.spacing_mm), dtype=torch.float32),
            "noise_level": torch.from_numpy(np.float32(patch.contrast.scale * patch.told.noise) * levels),
        }

    @property
    def parts(self) -> list[Part]:
        """Parts that items are cut from, as far as they are there."""
        return self.source.parts

    def metadata(self, position: int | tuple[int, int]) -> dict[str, Any]:
        """What item (epoch, index) is made of, as plain values: series, place, averaging, degradation, flips."""
        patch = self._drawn(position)
        return {
            "series": patch.part.case.key,
            "start": [side.start for side in patch.region],
            "stop": [side.stop for side in patch.region],
            "averaged_slices": patch.slices,
            "degradation": "pair" if patch.part.case.paired else describe_steps(patch.steps),
            "flips": list(patch.turn.flips) if self.augment else [False] * 3,
            "transpose": self.augment and patch.turn.transpose,
            "pixel_size": patch.reconstruction.pixels.factor,
            "kernel_mtf50_per_mm": patch.reconstruction.kernel.mtf50_per_mm,
            "contrast": patch.contrast.scale,
            "offset_hu": patch.contrast.offset_hu,
            "told_of_true": [patch.told.in_plane, patch.told.between, patch.told.noise],
        }

    def series_key(self, position: int | tuple[int, int]) -> str:
        """Key of the series that item (epoch, index) is cut from."""
        return self._part(position)[0].case.key

    def _part(self, position: int | tuple[int, int]) -> tuple[Part, np.random.Generator]:
        """The part that an item is cut from, and what draws all else about it."""
        epoch, index = position if isinstance(position, tuple) else (0, position)
        rng = np.random.default_rng([self.seed, min(epoch, MEASURING), index])
        passed = epoch + index / self.length if epoch < MEASURING else float(epoch - MEASURING)
        return self.source.draw(rng, passed), rng

    def _usable(self, part: Part) -> bool:
        return _fits(part, self.patch[0], self.patch[2]) and self._can_be_worse(part)

    def _can_be_worse(self, part: Part) -> bool:
        return part.case.paired or self.degradation.thickens(part.case.spacing_mm[2])

    def _require_usable(self, data: Sequence[Part]) -> list[Part]:
        size, _, slices = self.patch
        fitting = [part for part in data if _fits(part, size, slices)]
        if data and not fitting:
            raise BundleError(
                f"no series is as large as a patch of {size} x {size} x {slices}",
                hint="use a smaller patch_size or num_slices",
            )
        usable = [part for part in fitting if self._can_be_worse(part)]
        if fitting and not usable:
            raise BundleError(
                f"no series has slices thin enough to make slices of {max(self.degradation.slice_thickness_mm):g} mm",
                hint="use series of thinner slices, or a larger slice_thickness_mm",
            )
        return usable

    def _drawn(self, position: int | tuple[int, int]) -> "_Patch":
        """All that is random about an item; only body or air is looked up in the image."""
        part, rng = self._part(position)
        slices = self.slabs.draw(
            rng, spacing_mm=part.case.spacing_mm[2], slices=part.stop - part.start, wanted=self.patch[2]
        )
        other = self.reconstruction.draw(rng, pixels=min(part.case.shape[:2]), wanted=self.patch[0])
        slices, other = (1, Reconstruction()) if part.case.paired else (slices, other)
        region = self._region(part, slices, other.pixels, rng)
        steps = self.degradation.draw(rng, realisations=part.case.realisations)
        steps = () if part.case.paired else steps
        turn, contrast, told = _Turn.draw(rng), self.contrast.draw(rng), self.told.draw(rng)
        return _Patch(part, region, slices, other, steps, turn, contrast, told)

    def _levels(self, patch: "_Patch") -> np.ndarray:
        """Noise level of a patch's poor side, float32, one value per slice."""
        case, slices = patch.part.case, patch.region[2]
        if case.paired:
            return _levels_of_pair(case, slices)
        return self.levels(case, patch.steps, slices, slices=patch.slices, reconstruction=patch.reconstruction)

    def _region(
        self, part: Part, slices: int, pixels: PixelSize, rng: np.random.Generator
    ) -> tuple[slice, slice, slice]:
        """Draw where a patch of `slices` times as many slices lies, favouring body over air."""
        size = (pixels.source(self.patch[0]), pixels.source(self.patch[1]), self.patch[2] * slices)
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


class SlabDataset(Dataset):
    """Validation slabs: whole slices from the middle of each part, degraded always alike; items as PatchDataset's.

    Args:
        data: prepared cases and their validation slices.
        num_slices: most slices of a slab.
        dose: dose fraction of the degraded side, where `degradation` has low dose.
        degradation: how the poor side is made: the first of each list of values, nothing left clean.
        size: most rows and columns, from the middle; 0 for whole slices.
    """

    def __init__(
        self,
        data: Sequence[Part],
        *,
        num_slices: int,
        dose: float = 0.25,
        degradation: DegradationSampling | None = None,
        size: int = 0,
    ) -> None:
        self.parts = list(data)
        self.num_slices = num_slices
        self.steps = (degradation or DegradationSampling()).fixed(dose)
        self.levels = NoiseLevels()
        self.size = size

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return slab `index`."""
        part = self.parts[index]
        case = part.case
        rows, columns = (_middle(0, size, self.size or size) for size in case.shape[:2])
        region = (rows, columns, _middle(part.start, part.stop, self.num_slices))
        steps = () if case.paired else self.steps
        return {
            "image": torch.from_numpy(_poor(case, region, steps))[None],
            "label": torch.from_numpy(_float(case.image_hu[region]))[None],
            "spacing_mm": torch.tensor(case.spacing_mm, dtype=torch.float32),
            "noise_level": torch.from_numpy(
                _levels_of_pair(case, region[2]) if case.paired else self.levels(case, steps, region[2])
            ),
        }


def _poor(case: PreparedCase, region: "_Region", steps: Steps, *, slices: int = 1) -> np.ndarray:
    """The poor side of a region, float32: the real partner's, or the image degraded by `steps` with what is around."""
    if case.poor_hu is not None:
        return _float(case.poor_hu[region])
    pixels, beyond = margins(steps, case.spacing_mm)
    wide = tuple(
        slice(max(side.start - margin, 0), min(side.stop + margin, size))
        for side, margin, size in zip(region, (pixels, pixels, beyond), case.shape, strict=True)
    )

    def noise(realisation: int) -> tuple[np.ndarray, np.ndarray]:
        quantum, electronic = case.noise(realisation)
        return average(quantum[wide], slices), average(electronic[wide], slices)

    spacing_mm = (*case.spacing_mm[:2], case.spacing_mm[2] * slices)
    degraded = apply_steps(
        average(case.image_hu[wide], slices), steps, spacing_mm=spacing_mm, first=wide[2].start // slices, noise=noise
    )
    within = (slice(s.start - w.start, s.stop - w.start) for s, w in zip(region[:2], wide[:2], strict=True))
    first = (region[2].start - wide[2].start) // slices
    return degraded[(*within, slice(first, first + (region[2].stop - region[2].start) // slices))]


def _levels_of_pair(case: PreparedCase, region: slice) -> np.ndarray:
    """Noise level of a real partner, float32, one value per slice."""
    return np.asarray(case.poor_noise_hu, np.float32)[region]


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


@dataclass(frozen=True)
class _Patch:
    """What is drawn for an item."""

    part: Part
    region: "_Region"
    slices: int
    reconstruction: Reconstruction
    steps: Steps
    turn: _Turn
    contrast: Contrast
    told: Told

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        rows, columns, slices = self.part.case.spacing_mm
        factor = self.reconstruction.pixels.factor
        return rows * factor, columns * factor, slices * self.slices


_Region: TypeAlias = tuple[slice, slice, slice]


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
