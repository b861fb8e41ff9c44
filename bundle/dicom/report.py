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
from bundle.dicom.layouts import transfer_syntax
from bundle.dicom.series import Series
from bundle.dicom.sources import MEMBER_MARK, Sources
from bundle.dicom.uids import is_valid_uid

USABLE, REFUSED, OTHER = "usable", "refused", "not CT volume"


@dataclass(frozen=True, kw_only=True)
class SeriesReport:
    """Facts of one series; None or "" where the headers do not say. It holds no patient identifiers.

    Attributes:
        verdict: "usable", "refused" (should have been usable), or "not CT volume" (never was one).
        reason, hint: why, and what to do about it.
        where: folder of the series, or file that the refusal is about, relative to the input.
        key: series key, "" where there is none.
        notes: what a user should know although the series is usable.
        scanner: manufacturer and model.
        body_part, kernel, kvp, thickness_mm: as the headers have them.
        tube_current_ma, exposure_time_ms: lowest and highest of the slices.
        exposure_mas: Exposure as the scanner wrote it, lowest and highest; makers mean different things by it.
        size, spacing_mm: along a row, down a column, across the slices.
        tilt_degrees: angle between the step from slice to slice and the slices' normal.
        missing_slices, irregular: holes in a regular grid; True when there is no such grid.
        duplicates: slices merged with an identical one.
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
    return SeriesReport(
        verdict=USABLE,
        reason=f"{series.shape[2]} slices on one {'sheared' if tilt > 0.1 else 'regular'} grid",
        where=_folder(series.paths, root),
        key=series.key,
        notes=series.notes,
        size=series.shape,
        spacing_mm=tuple(round(value, 6) for value in series.spacing_mm),  # type: ignore[arg-type]
        tilt_degrees=tilt,
        duplicates=_count(r"duplicate slices were merged: (\d+)", series.notes),
        **_holes(series),
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
    """HU (H, W, n) of at most `count` true slices spread evenly over the series, not those at its ends.

    Raises:
        BundleError: when one cannot be decoded.
    """
    depth = len(series.paths)
    chosen = sorted({(2 * n + 1) * depth // (2 * count) for n in range(count)})
    few = replace(
        series,
        paths=tuple(series.paths[k] for k in chosen),
        headers=tuple(series.headers[k] for k in chosen),
        frames=tuple(series.frames[k] for k in chosen),
        places=tuple(series.places[k] for k in chosen),
        shape=(*series.shape[:2], len(chosen)),
        grid=None,
    )
    return few.load().hu()


def shown(value: str) -> str:
    """Text of a file on one line, without characters that would steer a terminal."""
    return " ".join("".join(c if c.isprintable() else " " for c in value).split())


def _facts(headers: Sequence[Dataset]) -> dict[str, Any]:
    first = headers[0]
    return {
        "scanner": shown(f"{text(first, 'Manufacturer')} {text(first, 'ManufacturerModelName')}"),
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
    with contextlib.suppress(Unusable):
        return decimals(header, keyword, count=1)[0]
    return None


def _range(headers: Sequence[Dataset], *keywords: str) -> tuple[float, float] | None:
    """Lowest and highest value over slices, of the first of `keywords` that has any (multi-frame names differ)."""
    for keyword in keywords:
        values = [value for header in headers if (value := _number(header, keyword)) is not None]
        if values:
            return min(values), max(values)
    return None


def _holes(series: Series) -> dict[str, Any]:
    """Slices that a resampled series' grid lacks, and whether its own slices made no such grid."""
    if series.grid is None:
        return {}
    exact = series.grid.origins.exact
    whole = int(exact.sum()) == len(series.paths)
    return {"missing_slices": int((~exact).sum()) if whole else 0, "irregular": not whole}


def _count(pattern: str, texts: Iterable[str]) -> int:
    """The number that one of `texts` gives."""
    return next((int(found[1]) for line in texts if (found := re.search(pattern, line))), 0)


def _folder(paths: Sequence[str], root: Path) -> str:
    """Folder that all files share (an archive counts as one), relative to the input."""
    folders = {
        path.split(MEMBER_MARK, 1)[0] if MEMBER_MARK in path and not os.path.lexists(path) else str(Path(path).parent)
        for path in paths
    }
    relative = os.path.relpath(os.path.commonpath(list(folders)), root if root.is_dir() else root.parent)
    return "." if relative.startswith("..") else shown(relative.replace(os.sep, "/"))


def _header_of(where: str, root: Path) -> Dataset | None:
    """Header of a file that a refusal names ("path" or "path and 3 more"); None when it cannot be read."""
    source = str((root if root.is_dir() else root.parent) / re.sub(r" and \d+ more$", "", where))
    # An archive member may raise anything of zlib's.
    with contextlib.suppress(Exception), Sources() as sources, sources.open(source) as stream:
        return read_header(stream)
    return None
