"""Slices into series: what belongs to one volume, in which order, and why the rest does not.

One Series Instance UID may hold several volumes (two kernels, two voltages, a perfusion study's times) and
things that are none (a localizer); a volume is never guessed together from them.
"""

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from bundle.dicom.elements import Unusable, text
from bundle.dicom.geometry import (
    LIKELY_SAME_ORIENTATION,
    Plane,
    grid_affine,
    heights,
    plane,
    same_orientation,
    same_place,
    tilt_degrees,
)
from bundle.dicom.headers import NotDicom, Slice, read_whole
from bundle.dicom.pixels import pixel_layout
from bundle.dicom.series import Series, content_digest, rescale, series_key, stored_values
from bundle.dicom.sources import Sources
from bundle.dicom.uids import is_valid_uid

# Images of one place may be told apart by one of these, if it yields whole stacks of equal height.
_PASS_FIELDS = (
    "AcquisitionNumber",
    "TemporalPositionIdentifier",
    "AcquisitionDateTime",
    "AcquisitionTime",
    "ContentTime",
    "TriggerTime",
    "ImageType",
)


@dataclass(frozen=True)
class Refusal:
    """A series, part of one or file that is not used.

    Attributes:
        key: series key, "" when it has none.
        reason: why, in one line.
        where: path of a file it is about, relative to the input.
        hint: what to do; may be empty.
        foreign: it is no CT volume and never was (localizer, other modality, table of contents), so that
            nothing is lost; False for what should have been usable.
    """

    key: str
    reason: str
    where: str
    hint: str = ""
    foreign: bool = False


@dataclass(frozen=True, eq=False)
class Damaged:
    """A file that is DICOM, and yet cannot be used."""

    source: str
    error: Unusable


@dataclass(frozen=True, eq=False)
class _Placed:
    image: Slice
    plane: Plane


def group_name(source: str, series_uid: str) -> tuple[str, str]:
    """What slices of one series share: the UID, or the folder where a de-identifier emptied the UIDs."""
    return (series_uid, "") if series_uid else ("", str(Path(source).parent))


def assemble(
    slices: Iterable[Slice], damaged: Iterable[Damaged], *, sources: Sources, where: Callable[[str], str]
) -> tuple[list[Series], list[Refusal]]:
    """Sort slices into series and refusals.

    Args:
        slices: of any number of series.
        damaged: files that could not be used; one of a series' makes the series unusable.
        sources: opens files where pixels have to be compared.
        where: shortens a source to what may be shown.
    """
    groups: dict[tuple[str, str], list[Slice]] = defaultdict(list)
    broken: dict[tuple[str, str], list[Damaged]] = defaultdict(list)
    for image in slices:
        groups[group_name(image.source, text(image.header, "SeriesInstanceUID"))].append(image)
    for file in damaged:
        uid = text(file.error.header, "SeriesInstanceUID") if file.error.header is not None else ""
        broken[group_name(file.source, uid)].append(file)
    found: list[Series] = []
    refused: list[Refusal] = []
    for name in [*groups, *(name for name in broken if name not in groups)]:
        group = _Group(name[0], sources, where)
        group.add(groups.get(name, []), broken.get(name, []))
        found += group.series
        refused += group.refused
    return found, refused


class _Group:
    """What lies under one Series Instance UID."""

    def __init__(self, series_uid: str, sources: Sources, where: Callable[[str], str]) -> None:
        self.series_uid = series_uid
        self.sources = sources
        self.where = where
        self.series: list[Series] = []
        self.refused: list[Refusal] = []

    def add(self, slices: list[Slice], damaged: list[Damaged]) -> None:
        """Sort the group's slices."""
        for _, files in itertools.groupby(sorted(damaged, key=_by_reason), key=_by_reason):
            group = list(files)
            self._refuse(group[0].error, group[0].source, others=len(group) - 1)
        scouts = [image for image in slices if "LOCALIZER" in text(image.header, "ImageType").upper().split("\\")]
        if scouts:
            self._refuse(
                Unusable("is a localizer, not a volume", foreign=True), scouts[0].source, others=len(scouts) - 1
            )
        slices = [image for image in slices if image not in scouts]
        if not slices or any(not file.error.foreign for file in damaged):
            return  # one damaged slice makes the series unusable, and its refusal stands already
        try:
            _check_one_patient(slices)
        except Unusable as error:
            self._refuse(error, slices[0].source)
            return
        placed = []
        for image in slices:
            try:
                pixel_layout(image.header)
                rescale(image.header)
                placed.append(_Placed(image, plane(image.header)))
            except Unusable as error:
                self._refuse(error, image.source)
                return
        self._add_parts(placed)

    def _add_parts(self, placed: list[_Placed]) -> None:
        parts = _split(placed)
        for label, part in parts.items():
            try:
                _check_one_matrix(part)
                passes, notes = self._passes(_ordered(part))
            except Unusable as error:
                self._refuse(error, part[0].image.source, label=label if len(parts) > 1 else "")
                continue
            for name, stack in passes.items():
                whole = "; ".join(filter(None, [label if len(parts) > 1 else "", name]))
                self._add_stack(stack, notes, whole)

    def _add_stack(self, stack: list[_Placed], notes: list[str], label: str) -> None:
        try:
            _check_unique_instances(stack)
            affine = grid_affine([p.plane for p in stack])
        except Unusable as error:
            self._refuse(error, stack[0].image.source, label=label)
            return
        first = stack[0].image.header
        layout = pixel_layout(first)
        self.series.append(
            Series(
                key=self._key([p.image.source for p in stack], label),
                paths=tuple(p.image.source for p in stack),
                headers=tuple(p.image.header for p in stack),
                affine=affine,
                shape=(layout.columns, layout.rows, len(stack)),
                frames=tuple(p.image.frame for p in stack),
                notes=(*notes, *_notes(stack, affine)),
            )
        )

    def _passes(self, stack: list[_Placed]) -> tuple[dict[str, list[_Placed]], list[str]]:
        """Stacks without two images at one place: passes told apart, true duplicates merged."""
        if not _shared_places(stack):
            return {"": stack}, []
        for keyword in _PASS_FIELDS:
            passes: dict[str, list[_Placed]] = defaultdict(list)
            for item in stack:
                passes[text(item.image.header, keyword)].append(item)
            sizes = {len(items) for items in passes.values()}
            if len(passes) > 1 and len(sizes) == 1 and not any(map(_shared_places, passes.values())) and min(sizes) > 1:
                return {f"{keyword} {value}": items for value, items in passes.items()}, []
        return self._merged(stack)

    def _merged(self, stack: list[_Placed]) -> tuple[dict[str, list[_Placed]], list[str]]:
        kept: list[_Placed] = []
        for item in stack:
            if not kept or not same_place(kept[-1].plane, item.plane):
                kept.append(item)
            elif not self._equal(kept[-1], item):
                height = float(heights([item.plane])[0])
                raise Unusable(
                    f"unlike slices share the same position (ImagePositionPatient, at {height:.2f} mm)",
                    hint="keep one of them",
                )
        return {"": kept}, [f"{len(stack) - len(kept)} duplicate slices were merged"]

    def _equal(self, a: _Placed, b: _Placed) -> bool:
        if not np.allclose(a.plane.position, b.plane.position, atol=1e-3):
            return False
        values = []
        for item in (a, b):
            try:
                with self.sources.open(item.image.source) as stream:
                    stored = stored_values(item.image, read_whole(stream))
            except (NotDicom, OSError) as error:
                raise Unusable("file cannot be read any more") from error
            slope, intercept = rescale(item.image.header)
            values.append(stored * slope + intercept)
        return bool(np.array_equal(values[0], values[1]))

    def _key(self, files: Sequence[str], label: str) -> str:
        if self.series_uid:
            return series_key(self.series_uid, (), label=label)
        return series_key("", [content_digest(file, self.sources) for file in files])

    def _refuse(self, error: Unusable, source: str, *, label: str = "", others: int = 0) -> None:
        shown = self.where(source) + (f" and {others} more" if others else "")
        reason = f"{error.message} ({label})" if label else error.message
        key = series_key(self.series_uid, (), label=label) if self.series_uid else ""
        self.refused.append(Refusal(key=key, reason=reason, where=shown, hint=error.hint, foreign=error.foreign))


def _by_reason(file: Damaged) -> tuple[bool, str]:
    return file.error.foreign, file.error.message


def _check_one_patient(slices: Sequence[Slice]) -> None:
    first = slices[0].header
    for image in slices[1:]:
        # Names are compared only without IDs: one name has many spellings and character sets.
        keyword = "PatientID" if text(first, "PatientID") or text(image.header, "PatientID") else "PatientName"
        if text(first, keyword) != text(image.header, keyword):
            raise Unusable("slices of more than one patient share one series", hint="separate the patients' files")
        if text(first, "StudyInstanceUID") != text(image.header, "StudyInstanceUID"):
            raise Unusable("slices of more than one study share one series")


def _split(placed: Sequence[_Placed]) -> dict[str, list[_Placed]]:
    """Parts that can never be one volume: other orientation, kernel or tube voltage."""
    axes: list[Plane] = []
    parts: dict[str, list[_Placed]] = defaultdict(list)
    for item in sorted(placed, key=lambda p: (p.image.source, p.image.frame or 0)):
        alike = [known for known in axes if same_orientation(known, item.plane, tolerance=LIKELY_SAME_ORIENTATION)]
        if not alike:
            axes.append(item.plane)
        direction = ",".join(f"{v + 0:.2f}" for v in (alike or [item.plane])[0].normal)
        header = item.image.header
        kernel, kvp = text(header, "ConvolutionKernel"), text(header, "KVP")
        parts[f"orientation {direction}, kernel {kernel or '-'}, KVP {kvp or '-'}"].append(item)
    return dict(sorted(parts.items()))


def _check_one_matrix(part: Sequence[_Placed]) -> None:
    first = part[0].image.header
    for item in part[1:]:
        header = item.image.header
        for keyword in ("Rows", "Columns"):
            if text(first, keyword) != text(header, keyword):
                raise Unusable("matrix size (Rows, Columns) changes from slice to slice")
    if frames_of_reference(p.image.header for p in part) > 1:
        raise Unusable("FrameOfReferenceUID (frame of reference) changes inside the series")


def frames_of_reference(headers: Iterable[Dataset]) -> int:
    """Number of frames of reference of a series' slices.

    A UID of its own for every slice is a de-identifier's doing (seen in LIDC-IDRI) and says nothing: it counts as
    one frame, and the derived series gets a new UID.
    """
    values = [text(header, "FrameOfReferenceUID") for header in headers]
    return 1 if len(set(values)) == len(values) else len(set(values))


def _ordered(part: list[_Placed]) -> list[_Placed]:
    """Along the normal; equal places in an order that does not depend on file names where UIDs tell them apart."""
    places = heights([p.plane for p in part])
    # Rounded, so that images of one place are neighbours in UID order whatever their rounding errors.
    order = sorted(
        range(len(part)),
        key=lambda n: (
            round(float(places[n]), 3),
            text(part[n].image.header, "SOPInstanceUID"),
            part[n].image.source,
            part[n].image.frame or 0,
        ),
    )
    return [part[n] for n in order]


def _shared_places(stack: Sequence[_Placed]) -> bool:
    return any(same_place(a.plane, b.plane) for a, b in itertools.pairwise(stack))


def _check_unique_instances(stack: Sequence[_Placed]) -> None:
    uids = [text(p.image.header, "SOPInstanceUID") for p in stack if p.image.frame is None]
    valid = [uid for uid in uids if uid]
    if len(set(valid)) < len(valid):
        raise Unusable("SOPInstanceUID is shared by several slices")


def _notes(stack: Sequence[_Placed], affine: np.ndarray) -> list[str]:
    notes = []
    tilt = tilt_degrees(affine)
    if tilt > 0.1:
        notes.append(f"gantry tilt of {tilt:.1f} degrees: the grid is sheared")
    header = stack[0].image.header
    if "PixelPaddingValue" in header:
        notes.append("padding outside the field of view is kept as it is")
    bad = [k for k in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID") if not is_valid_uid(text(header, k))]
    if bad:
        notes.append(f"UIDs are empty or invalid and will be replaced: {', '.join(bad)}")
    return notes
