"""Degradations as MONAI dictionary transforms; what was done is recorded in the image's meta data, 'degradation'."""

import zlib
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from bundle.degrade.composition import (
    DegradationSampling,
    LowDose,
    Steps,
    apply_steps,
    describe_steps,
)
from bundle.degrade.low_dose import Scanner, unit_noise_volume

DEGRADATION_KEY = "degradation"  # of an image's meta data


def series_seed(volume_hu: np.ndarray, *, seed: int) -> int:
    """A seed of `seed` and the volume's content: every series gets its own noise, and the same one each time."""
    content = np.ascontiguousarray(volume_hu, dtype=np.float32)
    return (seed << 32) + zlib.crc32(content.data)


class UnitNoised(MapTransform):
    """Add the unit noises of a volume, for `LowDosed` or a data pipeline to scale to any dose.

    The image is (1, H, W, D) HU; `quantum` and `electronic` are added as float16 MetaTensors of the same shape
    and affine. The seed given to `unit_noise_volume` is `series_seed` of the image.

    Args:
        keys: the one image to work on.
        seed: not negative.
        scanner: the physics.
        quantum: key of the quantum noise.
        electronic: key of the electronic noise.
        allow_missing_keys: leave data without the image alone.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        *,
        seed: int = 0,
        scanner: Scanner | None = None,
        quantum: str = "quantum",
        electronic: str = "electronic",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        _require_one_key(self.keys, "UnitNoised")
        self.seed = seed
        self.scanner = scanner or Scanner()
        self.noise_keys = (quantum, electronic)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with the two noises added."""
        result = dict(data)
        for key in self.key_iterator(result):
            image = result[key]
            volume_hu = _volume(image)
            noises = unit_noise_volume(
                volume_hu,
                spacing_mm=_spacing_mm(image),
                seed=series_seed(volume_hu, seed=self.seed),
                scanner=self.scanner,
            )
            for name, noise in zip(self.noise_keys, noises, strict=True):
                result[name] = MetaTensor(torch.from_numpy(noise)[None], affine=image.affine.clone())
        return result


class LowDosed(MapTransform):
    """Replace an image by what it would be at a fraction of its dose; `UnitNoised` has to come before.

    Nothing is random here: the noise was drawn by `UnitNoised`, the dose is given.

    Args:
        keys: the one image (1, H, W, D) HU to work on.
        dose: fraction of the image's own dose, in (0, 1]; 1 changes nothing.
        quantum: key of the quantum noise.
        electronic: key of the electronic noise.
        keep_noise: keep the two noises in the data.
        allow_missing_keys: leave data without the image alone.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        *,
        dose: float,
        quantum: str = "quantum",
        electronic: str = "electronic",
        keep_noise: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        _require_one_key(self.keys, "LowDosed")
        if not 0 < dose <= 1:
            raise ValueError(f"dose must be above 0 and at most 1, not {dose}")
        self.dose = dose
        self.noise_keys = (quantum, electronic)
        self.keep_noise = keep_noise

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with the image at the lower dose."""
        result = dict(data)
        for key in self.key_iterator(result):
            missing = [name for name in self.noise_keys if name not in result]
            if missing:
                raise ValueError(f"LowDosed found no {missing[0]!r} in its data: put UnitNoised before it")
            noises = tuple(np.asarray(result[name])[0] for name in self.noise_keys)
            result[key] = _degraded(result[key], (LowDose(dose=self.dose),), noises)
            if not self.keep_noise:
                for name in self.noise_keys:
                    del result[name]
        return result


class Degraded(MapTransform):
    """Replace an image by a degraded one: any kinds, in order, with parameters drawn once for each volume.

    Args:
        keys: the one image (1, H, W, D) HU to work on, its slices last.
        sampling: kinds and ranges; lists of one value and equal ends of the dose range fix the parameters.
        seed: with the volume's content it decides parameters and noise.
        scanner: physics of the noise.
        allow_missing_keys: leave data without the image alone.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        *,
        sampling: DegradationSampling,
        seed: int = 0,
        scanner: Scanner | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        _require_one_key(self.keys, "Degraded")
        self.sampling = sampling
        self.seed = seed
        self.scanner = scanner or Scanner()

    def draw(self, image: MetaTensor) -> Steps:
        """The steps for an image: a function of the seed and its content."""
        return self.sampling.draw(np.random.default_rng([series_seed(_volume(image), seed=self.seed), 1]))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with the image degraded."""
        result = dict(data)
        for key in self.key_iterator(result):
            steps = self.draw(result[key])
            noises: tuple[np.ndarray, ...] = ()
            if any(isinstance(step, LowDose) for step in steps):
                noised = UnitNoised(key, seed=self.seed, scanner=self.scanner)(result)
                noises = tuple(np.asarray(noised[name])[0] for name in ("quantum", "electronic"))
            result[key] = _degraded(result[key], steps, noises)
        return result


def _degraded(image: MetaTensor, steps: Steps, noises: tuple[np.ndarray, ...]) -> MetaTensor:
    """A new image whose affine, headers and applied operations are the old one's."""
    volume = apply_steps(_volume(image), steps, spacing_mm=_spacing_mm(image), noise=lambda _: (noises[0], noises[1]))
    degraded = image.clone()
    degraded.set_array(torch.from_numpy(volume)[None])
    degraded.meta[DEGRADATION_KEY] = [*image.meta.get(DEGRADATION_KEY, []), *describe_steps(steps)]
    return degraded


def _require_one_key(keys: tuple[Hashable, ...], name: str) -> None:
    if len(keys) != 1:
        raise ValueError(f"keys of {name} must name one image, not {list(keys)}")


def _volume(image: MetaTensor) -> np.ndarray:
    """The image (1, H, W, D) as an array (H, W, D)."""
    if not isinstance(image, MetaTensor) or image.ndim != 4 or image.shape[0] != 1:
        raise ValueError(f"image must be a MetaTensor of shape (1, H, W, D), not {type(image)} {tuple(image.shape)}")
    return np.asarray(image)[0]


def _spacing_mm(image: MetaTensor) -> tuple[float, float, float]:
    """Distance of rows, of columns, and of slices along their normal (sheared slices step aside as well)."""
    axes = np.asarray(image.affine, np.float64)[:3, :3]
    row, column = np.linalg.norm(axes[:, :2], axis=0)
    normal = np.cross(axes[:, 0], axes[:, 1])
    return float(row), float(column), float(abs(axes[:, 2] @ normal) / np.linalg.norm(normal))
