"""Where cases come from: a folder of DICOM series or of NIfTI volumes in HU, a datalist, or the hub."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bundle.configuration import checked_number
from bundle.data.case import Case
from bundle.data.datalist import read_datalist
from bundle.data.pairs import THICK_THIN, check_pairs_option, pair_by_rule, pair_thick_thin
from bundle.dicom.index import NoDicom, Refusal, Series, find_series
from bundle.errors import BundleError
from bundle.files import digest, file_digest

__all__ = ["Case", "Refusal", "Source", "check_max_samples", "dicom_cases", "find_cases"]

_NIFTI = ("*.nii", "*.nii.gz")
_BIDS_SUBJECT = re.compile(r"(?:^|/)(sub-[A-Za-z0-9]+)")


@dataclass(frozen=True)
class Source:
    """What a data folder holds."""

    cases: tuple[Case, ...]
    refused: tuple[Refusal, ...] = ()


def find_cases(
    dataset_dir: str | Path | None,
    *,
    max_samples: int | None = None,
    gaps: str = "refuse",
    pairs: str | None = None,
    validation_fold: int = 0,
    folders: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Source:
    """List the cases below `dataset_dir`, sorted by key.

    Args:
        dataset_dir: folder of DICOM files (any nesting) or of NIfTI files or both, or a datalist (.json).
        max_samples: use only so many cases, the first by key.
        gaps: 'refuse' series with gaps or uneven spacing, or 'resample' them by true positions.
        pairs: None (or 'none'): every series is a target by itself; 'thick_thin': thick and thin series of one study,
            found from geometry; or a naming rule 'POOR -> GOOD' on the folders' names.
        validation_fold: of a datalist with folds, the one that validates.
        folders: use only cases, and tell only of what is refused, of folders with these names, at any depth; () for
            all. They come before max_samples.
        progress: called with (files read, files in all).

    Raises:
        BundleError: when max_samples is below 1, or the folder is not named, is missing, or holds no usable CT, or one
            of `folders` holds none.
    """
    if not dataset_dir:
        raise BundleError("dataset_dir is required", hint="name a folder of DICOM or NIfTI with --dataset_dir")
    check_max_samples(max_samples)
    if str(dataset_dir).startswith("hf://"):
        raise BundleError("a data set on the hub is for training only", hint="download it and name the folder")
    pairs = check_pairs_option(pairs)
    root = Path(dataset_dir)
    if root.suffix == ".json" and root.is_file():
        cases, refused = read_datalist(root, gaps=gaps, validation_fold=validation_fold)
    elif not root.is_dir():
        raise BundleError(f"dataset_dir '{root.name}' is not a folder", hint="name a folder with --dataset_dir")
    else:
        cases, refused = _folder_cases(root, gaps=gaps, pairs=pairs, progress=progress)
    if not cases:
        reasons = "; ".join(sorted({refusal.reason for refusal in refused})) or "no CT series"
        raise BundleError(f"dataset_dir '{root.name}' holds no usable CT volume: {reasons}")
    if folders:
        cases = _of_folders(cases, folders)
        refused = [one for one in refused if not set(folders).isdisjoint(one.where.split("/"))]
    return Source(tuple(sorted(cases, key=lambda case: case.key)[:max_samples]), tuple(refused))


def _of_folders(cases: Sequence[Case], folders: Sequence[str]) -> list[Case]:
    if isinstance(folders, str):  # what the command line could not take for a list
        raise BundleError(f"validation_folders '{folders}' is no list", hint="write \"['NAME','NAME']\"")
    if absent := [name for name in folders if not any(name in case.label.split("/") for case in cases)]:
        raise BundleError(f"no usable case in the folders {', '.join(absent)}", hint="check validation_folders")
    return [case for case in cases if not set(folders).isdisjoint(case.label.split("/"))]


def check_max_samples(max_samples: int | None) -> int | None:
    """Return `max_samples`.

    Raises:
        BundleError: when it is no whole number of at least 1.
    """
    return None if max_samples is None else checked_number("max_samples", max_samples, int, low=1)


def _folder_cases(
    root: Path, *, gaps: str, pairs: str | None, progress: Callable[[int, int], None] | None
) -> tuple[list[Case], list[Refusal]]:
    nifti = sorted(path for pattern in _NIFTI for path in root.rglob(pattern))
    if nifti and pairs == THICK_THIN:
        raise BundleError("NIfTI files do not say which are of one study", hint="use a datalist or a rule for --pairs")
    try:
        dicom, refused = dicom_cases(root, gaps=gaps, pairs=pairs, progress=progress)
    except NoDicom:
        if not nifti:
            raise
        dicom, refused = [], []
    cases = [_nifti_case(path, root) for path in nifti]
    if not cases or not pairs:
        return dicom + cases, refused
    cases, alone = pair_by_rule(cases, pairs)
    return dicom + cases, refused + alone


def dicom_cases(
    root: Path,
    *,
    gaps: str = "refuse",
    pairs: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Case], list[Refusal]]:
    """Cases of DICOM files below `root` (a folder, or one archive), and what is not used; arguments as `find_cases`."""
    index = find_series(root, gaps=gaps, progress=progress)
    refused = list(index.refused)
    if pairs == THICK_THIN:
        found, alone = pair_thick_thin(index.series)
        cases = [replace(_dicom_case(thin, root), poor_files=thick.paths) for thin, thick in found]
        return cases, refused + alone
    cases = [_dicom_case(series, root) for series in index.series]
    if pairs:
        cases, alone = pair_by_rule(cases, pairs)
        refused += alone
    return cases, refused


def _dicom_case(series: Series, root: Path) -> Case:
    folder = Path(series.paths[0]).parent
    label = folder.relative_to(root).as_posix() if root in Path(series.paths[0]).parents else ""
    return Case(
        key=series.key,
        patient_key=series.patient_key,
        files=series.paths,
        label=label,
        resampled=series.grid is not None,
    )


def _nifti_case(path: Path, root: Path) -> Case:
    """NIfTI says nothing about the patient: files below one BIDS subject (sub-...) share one, others have their own."""
    key, label = file_digest(path)[:16], path.relative_to(root).as_posix()
    subject = _BIDS_SUBJECT.search(label)
    patient = digest("subject", subject.group(1))[:16] if subject else key
    return Case(key=key, patient_key=patient, files=(str(path),), label=label)
