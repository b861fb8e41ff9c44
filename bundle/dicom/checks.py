"""Checks across the slices of one series, and what a user should know of a usable one."""

from collections.abc import Sequence

import numpy as np
from pydicom.dataset import Dataset

from bundle.dicom.elements import Unusable, integer, text
from bundle.dicom.geometry import tilt_degrees
from bundle.dicom.uids import is_valid_uid


def check_one_patient(headers: Sequence[Dataset]) -> None:
    """Refuse slices of several patients or studies.

    Raises:
        Unusable: without naming anyone.
    """
    first = headers[0]
    for header in headers[1:]:
        # Names are compared only without IDs: one name has many spellings and character sets.
        keyword = "PatientID" if text(first, "PatientID") or text(header, "PatientID") else "PatientName"
        if text(first, keyword) != text(header, keyword):
            raise Unusable("slices of more than one patient share one series", hint="separate the patients' files")
        if text(first, "StudyInstanceUID") != text(header, "StudyInstanceUID"):
            raise Unusable("slices of more than one study share one series")


def check_one_frame(headers: Sequence[Dataset]) -> None:
    """Refuse slices of several matrix sizes or frames of reference.

    Raises:
        Unusable: saying which.
    """
    for keyword in ("Rows", "Columns"):
        if len({integer(header, keyword) for header in headers}) > 1:
            raise Unusable("matrix size (Rows, Columns) changes from slice to slice")
    if frames_of_reference(headers) > 1:
        raise Unusable("FrameOfReferenceUID (frame of reference) changes inside the series")


def frames_of_reference(headers: Sequence[Dataset]) -> int:
    """Number of frames of reference of a series' slices.

    A UID of its own for every slice is a de-identifier's doing (seen in LIDC-IDRI) and says nothing: it counts as
    one frame, and the derived series gets a new UID.
    """
    values = [text(header, "FrameOfReferenceUID") for header in headers]
    return 1 if len(set(values)) == len(values) else len(set(values))


def check_unique_instances(headers: Sequence[Dataset]) -> None:
    """Refuse slices that claim to be the same instance; empty identifiers and frames of one object may.

    Raises:
        Unusable: when two do.
    """
    single = [header for header in headers if "ReferencedFrameNumber" not in header]
    uids = [uid for uid in (text(header, "SOPInstanceUID") for header in single) if uid]
    if len(set(uids)) < len(uids):
        raise Unusable("SOPInstanceUID is shared by several slices")


def notes_on(header: Dataset, affine: np.ndarray) -> list[str]:
    """What a user should know of a usable series, from its first header and its affine (4, 4)."""
    notes = []
    tilt = tilt_degrees(affine)
    if tilt > 0.1:
        notes.append(f"gantry tilt of {tilt:.1f} degrees: the grid is sheared")
    if "PixelPaddingValue" in header:
        notes.append("padding outside the field of view is kept as it is")
    names = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID")
    bad = [name for name in names if not is_valid_uid(text(header, name))]
    if bad:
        notes.append(f"UIDs are empty or invalid and will be replaced: {', '.join(bad)}")
    return notes
