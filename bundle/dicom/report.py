"""What a user should know of a series before it is used, from its headers, and never who the patient is."""

import contextlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset

from bundle.dicom.elements import Unusable, decimals, text
from bundle.dicom.geometry import tilt_degrees
from bundle.dicom.grouping import Refusal
from bundle.dicom.headers import read_header
from bundle.dicom.pixels import transfer_syntax
from bundle.dicom.series import Series
from bundle.dicom.sources import MEMBER_MARK, Sources
from bundle.dicom.uids import is_valid_uid

USABLE, REFUSED, OTHER = "usable", "refused", "not CT volume"


@dataclass(frozen=True, kw_only=True)
class SeriesReport:
    """Facts of one series; None or "" where the headers do not say. It holds no patient identifiers.

    Attributes:
        key: series key, "" where there is none.
        where: folder of the series, or file that the refusal is about, relative to the input.
        verdict: "usable", "refused" (should have been usable), or "not CT volume" (never was one).
        reason: why.
        hint: what to do about it.
        notes: what a user should know although the series is usable.
        scanner: manufacturer and model.
        body_part: Body Part Examined.
        kernel: Convolution Kernel.
        kvp: tube voltage, kV.
        tube_current_ma, exposure_time_ms: lowest and highest of the slices.
        exposure_mas: Exposure as the scanner wrote it, lowest and highest; makers mean different things by it.
        size: columns, rows, slices.
        spacing_mm: between columns, rows and slice planes.
        thickness_mm: Slice Thickness.
        tilt_degrees: angle between the step from slice to slice and the slices' normal.
        missing_slices: holes in a regular grid.
        duplicates: slices merged with an identical one.
        irregular: the slices make no regular grid.
        transfer_syntax: how the pixels are stored.
        lossy: they were once compressed with loss.
        noise_hu: noise estimate of a few slices; None unless it was measured.
    """

    verdict: str
    reason: str
    where: str
    key: str = ""
    hint: str = ""
    notes: tuple[str, ...] = ()
    scanner: str = ""
    body_part: str = ""
    kernel: str = ""
    kvp: float | None = None
    tube_current_ma: tuple[float, float] | None = None
    exposure_mas: tuple[float, float] | None = None
    exposure_time_ms: tuple[float, float] | None = None
    size: tuple[int, int, int] | None = None
    spacing_mm: tuple[float, float, float] | None = None
    thickness_mm: float | None = None
    tilt_degrees: float | None = None
    missing_slices: int = 0
    duplicates: int = 0
    irregular: bool = False
    transfer_syntax: str = ""
    lossy: bool = False
    noise_hu: float | None = None


def report_of(series: Series, *, root: Path) -> SeriesReport:
    """Report a usable series; `root` is the input that it was found in."""
    tilt = round(tilt_degrees(series.affine), 2)
    grid = "sheared" if tilt > 0.1 else "regular"
    return SeriesReport(
        verdict=USABLE,
        reason=f"{series.shape[2]} slices on one {grid} grid",
        where=_folder(series.paths, root),
        key=series.key,
        notes=series.notes,
        size=series.shape,
        spacing_mm=tuple(round(value, 6) for value in series.spacing_mm),  # type: ignore[arg-type]
        tilt_degrees=tilt,
        duplicates=_count(r"duplicate slices were merged: (\d+)", series.notes),
        **_facts(series.headers),
    )


def report_of_refusal(refusal: Refusal, *, root: Path) -> SeriesReport:
    """Report what is not used, with facts of the file that the refusal names, where that can be read."""
    header = _header_of(refusal.where, root)
    return SeriesReport(
        verdict=OTHER if refusal.foreign else REFUSED,
        reason=refusal.reason,
        where=shown(refusal.where),
        key=refusal.key,
        hint=refusal.hint,
        missing_slices=_count(r"(\d+) missing slice", [refusal.reason]),
        irregular="irregular" in refusal.reason,
        **(_facts([header]) if header is not None and not refusal.foreign else {}),
    )


def sample_slices_hu(series: Series, *, count: int = 3) -> np.ndarray:
    """HU (H, W, n) of at most `count` slices spread evenly over the series, not those at its ends.

    Raises:
        BundleError: when one cannot be decoded.
    """
    depth = series.shape[2]
    chosen = sorted({(2 * n + 1) * depth // (2 * count) for n in range(count)})
    few = replace(
        series,
        paths=tuple(series.paths[k] for k in chosen),
        headers=tuple(series.headers[k] for k in chosen),
        frames=tuple(series.frames[k] for k in chosen),
        shape=(*series.shape[:2], len(chosen)),
    )
    return few.load().array


def shown(value: str) -> str:
    """Text of a file on one line, without characters that would steer a terminal."""
    return " ".join("".join(c if c.isprintable() else " " for c in value).split())


def _facts(headers: Sequence[Dataset]) -> dict[str, Any]:
    first = headers[0]
    names = [text(first, keyword) for keyword in ("Manufacturer", "ManufacturerModelName")]
    return {
        "scanner": shown(" ".join(filter(None, names))),
        "body_part": shown(text(first, "BodyPartExamined")),
        "kernel": shown(text(first, "ConvolutionKernel").replace("\\", " ")),
        "kvp": _number(first, "KVP"),
        "thickness_mm": _number(first, "SliceThickness"),
        "tube_current_ma": _range(headers, "XRayTubeCurrent", "XRayTubeCurrentInmA"),
        "exposure_mas": _range(headers, "Exposure", "ExposureInmAs"),
        "exposure_time_ms": _range(headers, "ExposureTime", "ExposureTimeInms"),
        "transfer_syntax": " and ".join(dict.fromkeys(_syntax_name(transfer_syntax(header)) for header in headers)),
        "lossy": any(text(header, "LossyImageCompression") == "01" for header in headers),
    }


def _syntax_name(syntax: str) -> str:
    """The standard's name without its tail; a private one stays unnamed."""
    name = uid.UID(syntax).name if is_valid_uid(syntax) else syntax
    return "unknown" if name == syntax else name.split(",")[0].replace(" Image Compression", "")


def _number(header: Dataset, keyword: str) -> float | None:
    try:
        return decimals(header, keyword, count=1)[0]
    except Unusable:
        return None


def _range(headers: Iterable[Dataset], *keywords: str) -> tuple[float, float] | None:
    """Lowest and highest value over slices, of the first of `keywords` that has any (multi-frame names differ)."""
    listed = list(headers)
    for keyword in keywords:
        values = [value for header in listed if (value := _number(header, keyword)) is not None]
        if values:
            return min(values), max(values)
    return None


def _count(pattern: str, texts: Iterable[str]) -> int:
    """The number that one of `texts` gives."""
    return next((int(found[1]) for line in texts if (found := re.search(pattern, line))), 0)


def _folder(paths: Sequence[str], root: Path) -> str:
    """Folder that all files share (an archive counts as one), relative to the input."""
    folders = {
        path.split(MEMBER_MARK, 1)[0] if MEMBER_MARK in path and not os.path.lexists(path) else str(Path(path).parent)
        for path in paths
    }
    above = root if root.is_dir() else root.parent
    relative = os.path.relpath(os.path.commonpath(list(folders)), above)
    return "." if relative.startswith("..") else shown(relative.replace(os.sep, "/"))


def _header_of(where: str, root: Path) -> Dataset | None:
    """Header of a file that a refusal names ("path" or "path and 3 more"); None when it cannot be read."""
    source = str((root if root.is_dir() else root.parent) / re.sub(r" and \d+ more$", "", where))
    with contextlib.suppress(Exception), Sources() as sources:  # an archive member may raise anything of zlib's
        with sources.open(source) as stream:
            return read_header(stream)
    return None
