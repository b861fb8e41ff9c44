"""Unique identifiers (PS3.5 section 9): valid ones, derived ones, replacements for the broken ones of real files."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from pydicom.dataset import Dataset

from bundle.dicom.elements import text

_UID = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))+")


def derived_uid(*parts: str) -> str:
    """A valid UID "2.25.<integer>" (PS3.5 B.2) that is a function of `parts` alone."""
    total = hashlib.sha256()
    for part in parts:  # lengths first, so that ("ab", "c") and ("a", "bc") differ
        data = part.encode()
        total.update(f"{len(data)}:".encode() + data)
    return f"2.25.{int.from_bytes(total.digest()[:16], 'big')}"


def is_valid_uid(value: str) -> bool:
    """Whether `value` is a UID as PS3.5 9.1 wants it: at most 64 characters, digits and dots, no leading zeros."""
    return len(value) <= 64 and _UID.fullmatch(value) is not None


def source_instance_uid(header: Dataset) -> str:
    """SOP Instance UID of a slice, from the meta group where a de-identifier emptied the data set; "" when neither."""
    meta = getattr(header, "file_meta", None)
    candidates = [text(header, "SOPInstanceUID")]
    candidates += [text(meta, "MediaStorageSOPInstanceUID")] if meta is not None else []
    return next((value for value in candidates if is_valid_uid(value)), "")


@dataclass(frozen=True, kw_only=True)
class Identifiers:
    """Valid identifiers of a series; source ones where they are valid, replacements where not.

    Attributes:
        study: Study Instance UID; its replacement is the same for all series of the study.
        series: Series Instance UID.
        frame_of_reference: Frame of Reference UID.
        instances: SOP Instance UID per slice.
        mapping: what was replaced: source text -> replacement; an empty source is written "Keyword (empty)".
    """

    study: str
    series: str
    frame_of_reference: str
    instances: tuple[str, ...]
    mapping: dict[str, str]


def repaired_identifiers(headers: Sequence[Dataset], *, key: str) -> Identifiers:
    """Replace invalid and empty identifiers of a series.

    A replacement comes from the invalid text itself; where the text is empty, the study's comes from what all its
    series share (patient, study date and time), the series' and frame of reference's from the series key, an
    instance's from the series and its place. An empty frame of reference is never taken to be shared between
    series: nothing says so.

    Args:
        headers: of all slices, in slice order.
        key: the series key.
    """
    first = headers[0]
    mapping: dict[str, str] = {}

    def repaired(keyword: str, *fallback: str) -> str:
        values = {text(header, keyword) for header in headers}
        value = values.pop() if len(values) == 1 else ""  # one per slice (LIDC-IDRI's frames of reference) is none
        if is_valid_uid(value):
            return value
        # A FrameOfReferenceUID and a StudyInstanceUID of the same invalid text must not become one UID.
        new = derived_uid(keyword, value) if value else derived_uid(f"{keyword} (empty)", *fallback)
        mapping[value or f"{keyword} (empty)"] = new
        return new

    shared = [text(first, name) for name in _STUDY_FACTS]
    study = repaired("StudyInstanceUID", *shared)
    series = repaired("SeriesInstanceUID", study, key)
    frame_of_reference = repaired("FrameOfReferenceUID", study, series)
    instances = [source_instance_uid(header) for header in headers]
    if len(set(instances)) < len(instances):  # emptied, or one placeholder for all: no use as identities
        for k in range(len(instances)):
            old = instances[k] or "SOPInstanceUID (empty)"
            instances[k] = derived_uid("SOPInstanceUID", series, str(k), instances[k])
            mapping[f"{old} slice {k}"] = instances[k]
    return Identifiers(
        study=study, series=series, frame_of_reference=frame_of_reference, instances=tuple(instances), mapping=mapping
    )


_STUDY_FACTS = ("PatientID", "PatientName", "PatientBirthDate", "StudyDate", "StudyTime", "StudyID", "AccessionNumber")
