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

from bundle.dicom.checks import check_one_frame, check_one_patient, check_unique_instances, notes_on
from bundle.dicom.elements import Unusable, text
from bundle.dicom.geometry import Plane, Uneven, grid_affine, heights, plane, same_place
from bundle.dicom.headers import NotDicom
from bundle.dicom.hounsfield import rescale
from bundle.dicom.layouts import pixel_layout
from bundle.dicom.series import Series, content_digest, series_key, stored_values
from bundle.dicom.slice_grid import SliceGrid, notes_on_grid, regular_grid
from bundle.dicom.slices import Slice
from bundle.dicom.sources import Sources
from bundle.dicom.stacks import Placed, in_order, share_places, split_parts, split_passes


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


def group_name(source: str, series_uid: str) -> tuple[str, str]:
    """What slices of one series share: the UID, or the folder where a de-identifier emptied the UIDs."""
    return (series_uid, "") if series_uid else ("", str(Path(source).parent))


def assemble(
    slices: Iterable[Slice],
    damaged: Iterable[Damaged],
    *,
    sources: Sources,
    where: Callable[[str], str],
    gaps: str = "refuse",
) -> tuple[list[Series], list[Refusal]]:
    """Sort slices into series and refusals.

    Args:
        slices: of any number of series.
        damaged: files that could not be used; one of a series' makes the series unusable.
        sources: opens files where pixels have to be compared.
        where: shortens a source to what may be shown.
        gaps: 'refuse' or 'resample' series with gaps or uneven spacing.
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
        group = _Group(name[0], sources, where, gaps)
        group.add(groups.get(name, []), broken.get(name, []))
        found += group.series
        refused += group.refused
    return found, refused


class _Group:
    """What lies under one Series Instance UID."""

    def __init__(self, series_uid: str, sources: Sources, where: Callable[[str], str], gaps: str) -> None:
        self.series_uid = series_uid
        self.sources = sources
        self.where = where
        self.gaps = gaps
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
            check_one_patient([image.header for image in slices])
        except Unusable as error:
            self._refuse(error, slices[0].source)
            return
        placed = []
        for image in slices:
            try:
                pixel_layout(image.header)
                rescale(image.header)
                placed.append(Placed(image, plane(image.header)))
            except Unusable as error:
                self._refuse(error, image.source)
                return
        self._add_parts(placed)

    def _add_parts(self, placed: list[Placed]) -> None:
        parts = split_parts(placed)
        for label, part in parts.items():
            try:
                check_one_frame([p.image.header for p in part])
                passes, notes = self._passes(in_order(part))
            except Unusable as error:
                self._refuse(error, part[0].image.source, label=label if len(parts) > 1 else "")
                continue
            for name, stack in passes.items():
                whole = "; ".join(filter(None, [label if len(parts) > 1 else "", name]))
                self._add_stack(stack, notes, whole)

    def _add_stack(self, stack: list[Placed], notes: list[str], label: str) -> None:
        try:
            check_unique_instances([p.image.header for p in stack])
            affine, grid, uneven = self._grid([p.plane for p in stack])
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
                shape=(layout.columns, layout.rows, len(stack) if grid is None else len(grid.origins)),
                frames=tuple(p.image.frame for p in stack),
                places=tuple(p.image.place for p in stack),
                notes=(*notes, *uneven, *notes_on(stack[0].image.header, affine)),
                grid=grid,
            )
        )

    def _grid(self, planes: list[Plane]) -> tuple[np.ndarray, SliceGrid | None, list[str]]:
        """Affine of a stack; for an uneven one that is to be resampled also the grid, and what to say of it."""
        try:
            return grid_affine(planes), None, []
        except Uneven:
            if self.gaps == "refuse":
                raise
        grid = regular_grid(planes)
        return grid.affine, grid, notes_on_grid(grid, planes)

    def _passes(self, stack: list[Placed]) -> tuple[dict[str, list[Placed]], list[str]]:
        """Stacks without two images at one place: passes told apart, true duplicates merged."""
        if not share_places(stack):
            return {"": stack}, []
        passes = split_passes(stack)
        return (passes, []) if passes else self._merged(stack)

    def _merged(self, stack: list[Placed]) -> tuple[dict[str, list[Placed]], list[str]]:
        kept: list[Placed] = []
        for item in stack:
            if not kept or not same_place(kept[-1].plane, item.plane):
                kept.append(item)
            elif not self._equal(kept[-1], item):
                height = float(heights([item.plane])[0])
                raise Unusable(
                    f"unlike slices share the same position (ImagePositionPatient, at {height:.2f} mm)",
                    hint="keep one of them",
                )
        return {"": kept}, [f"duplicate slices were merged: {len(stack) - len(kept)}"]

    def _equal(self, a: Placed, b: Placed) -> bool:
        if not np.allclose(a.plane.position, b.plane.position, atol=1e-3):
            return False
        values = []
        for item in (a, b):
            try:
                stored = stored_values(item.image, self.sources)
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
