"""Prepared cases: loaded, degraded at unit strength and resampled once, then memory-mapped.

A prepared case is a folder of plain .npy files (no pickle) and a case.json, named by a digest of the files'
content and of the preprocessing, so that a change of either makes another folder. It is written whole, under a lock:
processes that prepare the same data at the same time share the work, and none does it twice.
"""

import errno
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from bundle.data.case import Case
from bundle.dicom.geometry import grid_spacing_mm
from bundle.errors import BundleError, ExitCode, find_bundle_error
from bundle.files import digest, whole_folder
from bundle.metrics.noise import noise_level

_FORMAT = "2"
_LOCKS = ".locks"
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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
        realisations: number of noise realisations; 0 where low dose is not simulated.
        paired: whether there is a real poor partner.
        poor_noise_hu: per slice, noise level of the partner.
        side: 'train' or 'validation' where the data say so, else "".
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
    paired: bool = False
    poor_noise_hu: tuple[float, ...] = ()
    side: str = ""

    @cached_property
    def image_hu(self) -> np.ndarray:
        """HU (H, W, D), int16 where that is exact, else float32."""
        return np.load(self.folder / "image.npy", mmap_mode="r")

    @cached_property
    def poor_hu(self) -> np.ndarray | None:
        """HU of the real poor partner on the same grid (H, W, D); None without one."""
        return np.load(self.folder / "poor.npy", mmap_mode="r") if self.paired else None

    def noise(self, realisation: int) -> tuple[np.ndarray, np.ndarray]:
        """Unit quantum and electronic noise (H, W, D), float16 HU."""
        quantum, electronic = (
            np.load(self.folder / f"{name}_{realisation}.npy", mmap_mode="r") for name in ("quantum", "electronic")
        )
        return quantum, electronic


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
        transform: a MONAI chain from {'image': files} to 'image', 'quantum_i', 'electronic_i'; of a pair from
            {'image', 'poor'} to both on one grid.
        cache_dir: where prepared cases lie.
        recipe: every setting that changes the result; goes into the folder's name.
        realisations: noise realisations per case.
        progress: called with (done, total).

    Returns:
        The prepared cases in the order of `cases`, and for each skipped case's key the reason.

    Raises:
        BundleError: when no case could be prepared, or (exit code 74) the disk is full.
    """
    found: dict[int, PreparedCase] = {}
    skipped: dict[str, str] = {}
    waiting = list(enumerate(cases))
    for patience in (0.0, -1.0):  # what another process has in hand comes last
        in_hand = []
        for number, case in waiting:
            try:
                found[number] = prepare_case(case, transform, cache_dir, recipe, realisations, patience=patience)
            except Timeout:
                in_hand.append((number, case))
                continue
            except Exception as error:
                known = find_bundle_error(error)
                if known is None or known.exit_code != ExitCode.USER:
                    raise
                skipped[case.key] = str(known)
            if progress:
                progress(len(found) + len(skipped), len(cases))
        waiting = in_hand
    if not found:
        raise BundleError("no case could be prepared: " + "; ".join(sorted(set(skipped.values()))))
    return [found[number] for number in sorted(found)], skipped


def prepare_case(
    case: Case,
    transform: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    cache_dir: Path,
    recipe: Mapping[str, Any],
    realisations: int,
    *,
    patience: float = -1,
) -> PreparedCase:
    """Prepare one case unless it is in the cache.

    Args:
        case: what to prepare.
        transform: as for `prepare_cases`, and so are the next three.
        cache_dir: where prepared cases lie.
        recipe: every setting that changes the result.
        realisations: noise realisations.
        patience: seconds to wait for another process that has it in hand; -1 as long as it takes.

    Raises:
        Timeout: when the other process takes longer.
        BundleError: when it cannot be prepared, or (exit code 74) the disk is full.
    """
    realisations = 0 if case.poor_files else realisations
    settings = json.dumps([_FORMAT, dict(recipe), realisations], sort_keys=True, default=str)
    folder = cache_dir / digest(settings, case.content_digest())[:24]
    if not _is_whole(folder):
        try:
            (cache_dir / _LOCKS).mkdir(parents=True, exist_ok=True)
            with FileLock(cache_dir / _LOCKS / folder.name, timeout=patience):
                if not _is_whole(folder):
                    _drop_leftovers(folder)
                    data = transform(_sources(case))
                    with whole_folder(folder) as temporary:
                        _write(temporary, data, realisations)
        except OSError as error:
            if isinstance(error, Timeout) or error.errno not in _DISK_FULL:
                raise
            raise BundleError(
                f"the disk is full: series {case.key} could not be prepared below '{cache_dir.name}'",
                hint="free some space and start again: what was prepared stays; or use fewer noise_realisations",
                exit_code=ExitCode.IO,
            ) from error
    described = json.loads((folder / "case.json").read_text())
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in described.items()
    }
    return PreparedCase(folder, case.key, case.patient_key, case.label, side=case.side, **values)


def _sources(case: Case) -> dict[str, Any]:
    return {"image": list(case.files)} | ({"poor": list(case.poor_files)} if case.poor_files else {})


def _is_whole(folder: Path) -> bool:
    return (folder / "case.json").is_file()


def _drop_leftovers(folder: Path) -> None:
    """Remove what a killed preparation left under a temporary name; called under the lock."""
    for leftover in folder.parent.glob(f".{folder.name}.*.part"):
        shutil.rmtree(leftover, ignore_errors=True)


def _write(folder: Path, data: Mapping[str, Any], realisations: int) -> None:
    image = data["image"]
    image_hu = np.asarray(image)[0].astype(np.float32)
    own = noise_level(image_hu)
    levels: dict[str, list[np.ndarray]] = {"quantum": [np.zeros_like(own)], "electronic": [np.zeros_like(own)]}
    for realisation in range(realisations):
        for name, found in levels.items():
            noise = np.asarray(data[f"{name}_{realisation}"])[0]
            _save(folder / f"{name}_{realisation}.npy", noise.astype(np.float16))
            # The body decides where noise is measured, so it is measured on image plus noise, less the image's.
            both = noise_level(image_hu + noise.astype(np.float32))
            found.append(np.sqrt(np.maximum(both**2 - own**2, 0)))
    _save(folder / "image.npy", _smallest_exact(image_hu))
    described = {
        "shape": list(image_hu.shape),
        "spacing_mm": list(grid_spacing_mm(np.asarray(image.affine))),
        "noise_hu": own.tolist(),
        "quantum_hu": np.mean(levels["quantum"][-realisations:], axis=0).tolist(),
        "electronic_hu": np.mean(levels["electronic"][-realisations:], axis=0).tolist(),
        "realisations": realisations,
    }
    if "poor" in data:
        poor_hu = np.asarray(data["poor"])[0].astype(np.float32)
        assert poor_hu.shape == image_hu.shape, "both of a pair are on one grid"
        _save(folder / "poor.npy", _smallest_exact(poor_hu))
        described |= {"paired": True, "poor_noise_hu": noise_level(poor_hu).tolist()}
    (folder / "case.json").write_text(json.dumps(described))


def _save(path: Path, array: np.ndarray) -> None:
    """As np.save, through Python's own writing: numpy's raises without saying that the disk is full."""
    array = np.ascontiguousarray(array)
    with path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(array))
        stream.write(array.data)


def _smallest_exact(image_hu: np.ndarray) -> np.ndarray:
    """Return int16 where nothing is lost by it."""
    as_int16 = np.clip(np.rint(image_hu), -32768, 32767).astype(np.int16)
    return as_int16 if np.array_equal(as_int16, image_hu) else image_hu
