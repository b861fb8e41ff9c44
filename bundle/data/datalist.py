"""A datalist: a JSON file that names pairs and single volumes, with folds, as MONAI's Decathlon datalists do.

    {"training": [{"image": "low/p1", "label": "full/p1", "fold": 0, "patient": "p1"}, {"label": "full/p2"}]}

`image` is the poor volume, `label` the good one; an entry with one of them alone is a target whose poor side is
simulated. Each is a folder that holds one DICOM series, a ZIP of one, or a NIfTI file, relative to the datalist.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bundle.data.case import Case
from bundle.dicom.index import Refusal, find_series
from bundle.errors import BundleError
from bundle.files import digest, file_digest

_SIDES = {"training": "train", "train": "train", "validation": "validation", "val": "validation"}
_SHAPE = 'write {"training": [{"image": "poor", "label": "good", "fold": 0}, ...]}'


def read_datalist(path: Path, *, gaps: str = "refuse", validation_fold: int = 0) -> tuple[list[Case], list[Refusal]]:
    """Cases of a datalist, and the entries that cannot be used.

    Args:
        path: the JSON file.
        gaps: as for `find_series`.
        validation_fold: where entries have folds, the one that validates.

    Raises:
        BundleError: when the file is no datalist, or a patient is in both of its parts.
    """
    cases: list[Case] = []
    refused: list[Refusal] = []
    for number, (entry, side) in enumerate(_entries(path, validation_fold)):
        where = f"entry {number}"
        try:
            cases.append(_case(entry, side, root=path.parent, gaps=gaps))
        except BundleError as error:
            refused.append(Refusal("", error.message, where, error.hint))
    sides: dict[str, set[str]] = {}
    for case in cases:
        sides.setdefault(case.patient_key, set()).add(case.side)
    if any(len(found) > 1 for found in sides.values()):
        raise BundleError(
            f"datalist '{path.name}' has a patient in training and validation", hint="keep each patient on one side"
        )
    return cases, refused


def _entries(path: Path, validation_fold: int) -> Iterator[tuple[dict[str, Any], str]]:
    """Each entry and its side."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BundleError(f"datalist '{path.name}' is no JSON", hint=_SHAPE) from error
    parts = {"": content} if isinstance(content, list) else content
    known = {name: part for name, part in parts.items() if name in ("", *_SIDES)} if isinstance(parts, dict) else {}
    if not known or not all(isinstance(part, list) for part in known.values()):
        raise BundleError(f"datalist '{path.name}' has no list of entries", hint=_SHAPE)
    entries = [(entry, _SIDES.get(name, "")) for name, part in known.items() for entry in part]
    if not all(isinstance(entry, dict) for entry, _ in entries):
        raise BundleError(f"datalist '{path.name}' has an entry that is no object", hint=_SHAPE)
    explicit = any(side == "validation" for _, side in entries)
    folds = any("fold" in entry for entry, _ in entries)
    for entry, side in entries:
        if explicit:
            yield entry, side or "train"
        elif folds:
            yield entry, "validation" if entry.get("fold") == validation_fold else "train"
        else:
            yield entry, ""


def _case(entry: dict[str, Any], side: str, *, root: Path, gaps: str) -> Case:
    named = [entry[name] for name in ("label", "image") if entry.get(name)]
    if not named or not all(isinstance(name, str) for name in named):
        raise BundleError("names neither image nor label", hint=_SHAPE)
    good, *poor = (_volume(root / name, gaps=gaps) for name in named)
    patient = digest("patient", str(entry["patient"]))[:16] if entry.get("patient") else good.patient_key
    return Case(
        key=good.key,
        patient_key=patient,
        files=good.files,
        label=good.label,
        resampled=good.resampled,
        poor_files=poor[0].files if poor else (),
        side=side,
    )


def _volume(path: Path, *, gaps: str) -> Case:
    if path.name.lower().endswith((".nii", ".nii.gz")):
        if not path.is_file():
            raise BundleError(f"'{path.name}' does not exist", hint="paths are relative to the datalist")
        key = file_digest(path)[:16]
        return Case(key=key, patient_key=key, files=(str(path),), label=path.parent.name)
    index = find_series(path, gaps=gaps)
    if len(index.series) != 1:
        reason = index.refused[0].reason if index.refused and not index.series else f"{len(index.series)} CT series"
        raise BundleError(f"'{path.name}' holds no single series: {reason}", hint="name a folder with one series")
    series = index.series[0]
    return Case(
        key=series.key,
        patient_key=series.patient_key,
        files=series.paths,
        label=path.name,
        resampled=series.grid is not None,
    )
