"""A case: the files of one volume, and of its poor partner where there is a real one."""

from dataclasses import dataclass
from pathlib import Path

from bundle.dicom.sources import MEMBER_MARK
from bundle.files import digest, file_digest


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

    @property
    def is_nifti(self) -> bool:
        """Whether it is a NIfTI file, which has no DICOM header."""
        return self.files[0].lower().endswith((".nii", ".nii.gz"))

    def content_digest(self) -> str:
        """SHA-256 of all files' content: a change of the data is noticed whatever the names say."""
        # Of a member of an archive: the archive's content and the member's name; never the way to the folder.
        named = [file.partition(MEMBER_MARK) for file in (*self.files, *self.poor_files)]
        archives = {archive: file_digest(Path(archive)) for archive in dict.fromkeys(name for name, _, _ in named)}
        contents = [part for archive, _, member in named for part in (archives[archive], member)]
        paired = [f"paired after {len(self.files)}"] if self.poor_files else []
        return digest(*contents, *(["resampled"] if self.resampled else []), *paired)
