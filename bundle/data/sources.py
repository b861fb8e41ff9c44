"""Where cases come from: a folder of DICOM series or of NIfTI volumes in HU."""

from dataclasses import dataclass
from pathlib import Path

from bundle.dicom.index import Refusal, find_series
from bundle.dicom.sources import MEMBER_MARK
from bundle.errors import BundleError
from bundle.files import digest, file_digest

_NIFTI = ("*.nii", "*.nii.gz")


@dataclass(frozen=True, repr=False)
class Case:
    """One volume to train on or to restore.

    Attributes:
        key: series key; says nothing about the patient.
        patient_key: the same for all cases of a patient.
        files: what the loader reads, in slice order.
        label: where it lies, relative to the data folder; for the user's eyes, not for reports.
        resampled: its slices are uneven and are put on a regular grid by their true positions.
        poor_files: the real poor partner of a pair; empty for a volume whose poor side is simulated.
        side: 'train' or 'validation' where the data say so, else "".
    """

    key: str
    patient_key: str
    files: tuple[str, ...]
    label: str
    resampled: bool = False
    poor_files: tuple[str, ...] = ()
    side: str = ""

    def __repr__(self) -> str:
        """The key alone: paths may hold identifiers, and a repr ends up in logs."""
        return f"Case({self.key})"

    def content_digest(self) -> str:
        """SHA-256 of all files' content: a change of the data is noticed whatever the names say."""
        # Of a member of an archive: the archive's content and the member's name; never the way to the folder.
        named = [file.partition(MEMBER_MARK) for file in (*self.files, *self.poor_files)]
        archives = {archive: file_digest(Path(archive)) for archive in dict.fromkeys(name for name, _, _ in named)}
        contents = [part for archive, _, member in named for part in (archives[archive], member)]
        paired = [f"paired after {len(self.files)}"] if self.poor_files else []
        return digest(*contents, *(["resampled"] if self.resampled else []), *paired)


@dataclass(frozen=True)
class Source:
    """What a data folder holds."""

    cases: tuple[Case, ...]
    refused: tuple[Refusal, ...] = ()


def find_cases(dataset_dir: str | Path | None, *, max_samples: int | None = None, gaps: str = "refuse") -> Source:
    """List the cases below `dataset_dir`, sorted by key.

    Args:
        dataset_dir: folder of DICOM files (any nesting) or of NIfTI files.
        max_samples: use only so many cases, the first by key.
        gaps: 'refuse' series with gaps or uneven spacing, or 'resample' them by true positions.

    Raises:
        BundleError: when max_samples is below 1, or the folder is not named, is missing, or holds no usable CT.
    """
    if not dataset_dir:
        raise BundleError("dataset_dir is required", hint="name a folder of DICOM or NIfTI with --dataset_dir")
    if str(dataset_dir).startswith("hf://"):
        raise BundleError("dataset_dir from the hub is not supported yet", hint="download it and name the folder")
    if max_samples is not None and max_samples < 1:
        raise BundleError(f"max_samples must be 1 or more, not {max_samples}", hint="leave it out to use all")
    root = Path(dataset_dir)
    if not root.is_dir():
        raise BundleError(f"dataset_dir '{root.name}' is not a folder", hint="name a folder with --dataset_dir")
    nifti = sorted(path for pattern in _NIFTI for path in root.rglob(pattern))
    source = _nifti_cases(nifti, root) if nifti else _dicom_cases(root, gaps=gaps)
    if not source.cases:
        reasons = "; ".join(sorted({refusal.reason for refusal in source.refused})) or "no CT series"
        raise BundleError(f"dataset_dir '{root.name}' holds no usable CT volume: {reasons}")
    cases = sorted(source.cases, key=lambda case: case.key)[:max_samples]
    return Source(tuple(cases), source.refused)


def _dicom_cases(root: Path, *, gaps: str) -> Source:
    index = find_series(root, gaps=gaps)
    cases = tuple(
        Case(
            key=series.key,
            patient_key=series.patient_key,
            files=series.paths,
            label=str(Path(series.paths[0]).parent.relative_to(root)) if root in Path(series.paths[0]).parents else "",
            resampled=series.grid is not None,
        )
        for series in index.series
    )
    return Source(cases, tuple(index.refused))


def _nifti_cases(paths: list[Path], root: Path) -> Source:
    cases = []
    for path in paths:
        key = file_digest(path)[:16]
        cases.append(Case(key=key, patient_key=key, files=(str(path),), label=str(path.relative_to(root))))
    return Source(tuple(cases))
