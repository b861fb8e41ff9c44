"""Low dose as MONAI dictionary transforms. Sampling a dose and applying it are apart: `sample_dose`, `LowDosed`."""

import zlib
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from bundle.degrade.low_dose import Scanner, apply_dose, unit_noise_volume


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
    if not 0 < low <= high <= 1:
        raise ValueError(f"dose range must satisfy 0 < low <= high <= 1, not ({low}, {high})")
    if not 0 <= clean_fraction <= 1:
        raise ValueError(f"clean_fraction must be between 0 and 1, not {clean_fraction}")
    clean, position = rng.random(2)  # always two draws: what follows does not depend on which branch was taken
    if clean < clean_fraction:
        return 1.0
    return float(np.clip(np.exp(np.log(low) + position * (np.log(high) - np.log(low))), low, high))


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
            image = result[key]
            quantum, electronic = (np.asarray(result[name]) for name in self.noise_keys)
            degraded = torch.from_numpy(apply_dose(np.asarray(image), quantum, electronic, dose=self.dose))
            # Through the old image, so that affine, headers and applied operations stay with the new one.
            result[key] = image.clone()
            result[key].set_array(degraded)
            if not self.keep_noise:
                for name in self.noise_keys:
                    del result[name]
        return result


def _require_one_key(keys: tuple[Hashable, ...], name: str) -> None:
    if len(keys) != 1:
        raise ValueError(f"keys of {name} must name one image, not {list(keys)}")


def _volume(image: MetaTensor) -> np.ndarray:
    """The image (1, H, W, D) as an array (H, W, D)."""
    if not isinstance(image, MetaTensor) or image.ndim != 4 or image.shape[0] != 1:
        raise ValueError(f"image must be a MetaTensor of shape (1, H, W, D), not {type(image)} {tuple(image.shape)}")
    return np.asarray(image)[0]


def _spacing_mm(image: MetaTensor) -> tuple[float, float]:
    """Distance of rows and of columns: the lengths of the affine's first two columns."""
    row, column = np.linalg.norm(np.asarray(image.affine)[:3, :2], axis=0)
    return float(row), float(column)
