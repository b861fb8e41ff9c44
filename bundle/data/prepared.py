"""Prepared cases: loaded, degraded at unit strength and resampled once, then memory-mapped.

A prepared case is a folder of plain .npy files (no pickle) and a case.json, named by a digest of the files'
content and of the preprocessing, so that a change of either makes another folder. It is written whole.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from bundle.data.sources import Case
from bundle.dicom.geometry import grid_spacing_mm
from bundle.errors import BundleError, find_bundle_error
from bundle.files import digest, whole_folder
from bundle.metrics.noise import noise_level

_FORMAT = "1"


@dataclass(frozen=True)
class PreparedCase:
    """A case on disk; arrays are memory-mapped and opened at first use.

    Attributes:
        folder: where it lies.
        key: series key.
        patient_key: the same for all cases of a patient.
        label: where the source lies, relative to the data folder.
        shape: (H, W, D).
        spacing_mm: along H, W, D.
        noise_hu: per slice, noise level of the image as it is.
        quantum_hu: per slice, noise level of the unit quantum noise; the realisations' mean.
        electronic_hu: per slice, the same for electronic noise.
        realisations: number of noise realisations.
    """

    folder: Path
    key: str
    patient_key: str
    label: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    noise_hu: tuple[float, ...]
    quantum_hu: tuple[float, ...]
    electronic_hu: tuple[float, ...]
    realisations: int

    @cached_property
    def image_hu(self) -> np.ndarray:
        """HU (H, W, D), int16 where that is exact, else float32."""
        return np.load(self.folder / "image.npy", mmap_mode="r")

    def noise(self, realisation: int) -> tuple[np.ndarray, np.ndarray]:
        """Unit quantum and electronic noise (H, W, D), float16 HU."""
        quantum, electronic = (
            np.load(self.folder / f"{name}_{realisation}.npy", mmap_mode="r") for name in ("quantum", "electronic")
        )
        return quantum, electronic

    def noise_level(self, dose: float, region: slice, *, slices: int = 1, own_level: float = 1.0) -> np.ndarray:
        """Noise level in HU at a dose fraction: independent parts add in quadrature.

        Args:
            dose: fraction of the scan's own dose.
            region: slices of the case.
            slices: how many neighbours of `region` are averaged to one.
            own_level: level of the scan's own noise after averaging, relative to a single slice's.

        Returns:
            float32, one value for each slice or average.
        """
        own, quantum, electronic = (
            np.square(np.asarray(level, np.float32)[region]).reshape(-1, slices).mean(axis=1)
            for level in (self.noise_hu, self.quantum_hu, self.electronic_hu)
        )
        # The simulated noise is independent from slice to slice, so that its variance falls as 1 / n.
        added = ((1 / dose - 1) * quantum + (1 / dose**2 - 1) * electronic) / slices
        return np.sqrt(own_level**2 * own + added).astype(np.float32)


def prepare_cases(
    cases: Sequence[Case],
    *,
    transform: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    cache_dir: Path,
    recipe: Mapping[str, Any],
    realisations: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[PreparedCase], dict[str, str]]:
    """Prepare every case that is not in the cache yet.

    Args:
        cases: what to prepare.
        transform: a MONAI chain from {'image': files} to 'image', 'quantum_i', 'electronic_i'.
        cache_dir: where prepared cases lie.
        recipe: every setting that changes the result; goes into the folder's name.
        realisations: noise realisations per case.
        progress: called with (done, total).

    Returns:
        The prepared cases, and for each skipped case's key the reason.

    Raises:
        BundleError: when no case could be prepared.
    """
    prepared, skipped = [], {}
    for number, case in enumerate(cases):
        try:
            prepared.append(_prepare(case, transform, cache_dir, recipe, realisations))
        except Exception as error:
            known = find_bundle_error(error)
            if known is None or known.exit_code != 2:
                raise
            skipped[case.key] = str(known)
        if progress:
            progress(number + 1, len(cases))
    if not prepared:
        raise BundleError("no case could be prepared: " + "; ".join(sorted(set(skipped.values()))))
    return prepared, skipped


def _prepare(
    case: Case,
    transform: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    cache_dir: Path,
    recipe: Mapping[str, Any],
    realisations: int,
) -> PreparedCase:
    settings = json.dumps([_FORMAT, dict(recipe), realisations], sort_keys=True, default=str)
    folder = cache_dir / digest(settings, case.content_digest())[:24]
    if not (folder / "case.json").is_file():
        data = transform({"image": list(case.files)})
        with whole_folder(folder) as temporary:
            _write(temporary, data, realisations)
    described = json.loads((folder / "case.json").read_text())
    return PreparedCase(folder, case.key, case.patient_key, case.label, **{k: _tuple(v) for k, v in described.items()})


def _write(folder: Path, data: Mapping[str, Any], realisations: int) -> None:
    image = data["image"]
    image_hu = np.asarray(image)[0].astype(np.float32)
    levels: dict[str, list[np.ndarray]] = {"quantum": [], "electronic": []}
    for realisation in range(realisations):
        for name, found in levels.items():
            noise = np.asarray(data[f"{name}_{realisation}"])[0]
            np.save(folder / f"{name}_{realisation}.npy", noise.astype(np.float16), allow_pickle=False)
            # The body decides where noise is measured, so it is measured on image plus noise, less the image's.
            both = noise_level(image_hu + noise.astype(np.float32))
            found.append(np.sqrt(np.maximum(both**2 - noise_level(image_hu) ** 2, 0)))
    np.save(folder / "image.npy", _smallest_exact(image_hu), allow_pickle=False)
    described = {
        "shape": list(image_hu.shape),
        "spacing_mm": list(grid_spacing_mm(np.asarray(image.affine))),
        "noise_hu": noise_level(image_hu).tolist(),
        "quantum_hu": np.mean(levels["quantum"], axis=0).tolist(),
        "electronic_hu": np.mean(levels["electronic"], axis=0).tolist(),
        "realisations": realisations,
    }
    (folder / "case.json").write_text(json.dumps(described))


def _smallest_exact(image_hu: np.ndarray) -> np.ndarray:
    """Return int16 where nothing is lost by it."""
    as_int16 = np.clip(np.rint(image_hu), -32768, 32767).astype(np.int16)
    return as_int16 if np.array_equal(as_int16, image_hu) else image_hu


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
