"""`python -m bundle inspect DIR`: which series would be used and why the others would not, before anything runs."""

import dataclasses
import json
import os
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bundle.configuration import flag
from bundle.dicom.index import SeriesIndex, find_series
from bundle.dicom.report import (
    OTHER,
    REFUSED,
    USABLE,
    SeriesReport,
    report_of,
    report_of_refusal,
    sample_slices_hu,
    shown,
)
from bundle.dicom.series import Series
from bundle.errors import BundleError, ExitCode
from bundle.metrics.noise import noise_level
from bundle.overrides import nearest
from bundle.progress import Progress, set_quiet, track

SCHEMA_VERSION = 1
WIDTH = 80
_SWITCHES = {"json": False, "noise": True, "quiet": False}
_USAGE = "python -m bundle inspect DIR [--json] [--noise false] [--gaps resample] [--quiet]"
_HEADER = f"{'series':16} {'size':12} {'spacing mm':15} {'kVp':>4} {'mA':>8} {'noise':>6} kernel"


def inspect(arguments: Sequence[str]) -> int:
    """Print what lies below the folder that `arguments` name, as a table or as JSON.

    Returns:
        The exit code.

    Raises:
        BundleError: when the arguments are wrong, or (after printing) when no series is usable.
    """
    root, switches, gaps = _parsed(arguments)
    set_quiet(switches["quiet"])
    index = _index(root, gaps=gaps)
    reports = [report_of(series, root=root) for series in index.series]
    if switches["noise"]:
        pairs = list(zip(index.series, reports, strict=True))
        reports = [_with_noise(report, series) for series, report in track(pairs, "noise", unit="series")]
    reports += [report_of_refusal(refusal, root=root) for refusal in index.refused]
    lines = [_as_json(reports, index.ignored)] if switches["json"] else _table(reports, index.ignored)
    _print(lines)
    if not any(report.verdict == USABLE for report in reports):
        raise BundleError("no usable CT series", hint="the reasons are listed above")
    return ExitCode.DONE


def _print(lines: Iterable[str]) -> None:
    try:
        for line in lines:
            print(line)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough; Python would complain once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parsed(arguments: Sequence[str]) -> tuple[Path, dict[str, bool], str]:
    """The folder, the switches and `gaps`; fire would read `--noise` as the opposite of `--ise`."""
    switches, gaps = dict(_SWITCHES), "refuse"
    folders: list[str] = []
    rest = list(arguments)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if not name.startswith("--"):
            folders.append(f"{name}{equals}{value}")
        elif name == "--gaps":
            gaps = value if equals else (rest.pop(0) if rest else "")
        elif name[2:] in switches:
            if not equals:
                value = rest.pop(0) if rest and rest[0].lower() in ("true", "false") else "true"
            switches[name[2:]] = flag(value)
        else:
            near = nearest(name[2:], (*switches, "gaps"))
            raise BundleError(f"unknown option {name}", hint=f"did you mean --{near}?" if near else _USAGE)
    if not folders:
        raise BundleError("DIR is required", hint=_USAGE)
    if len(folders) > 1:
        raise BundleError(f"unexpected argument '{folders[1]}'", hint=_USAGE)
    return Path(folders[0]), switches, gaps


def _index(root: Path, *, gaps: str) -> SeriesIndex:
    with Progress("reading headers", unit="file") as progress:

        def update(done: int, total: int) -> None:
            progress.total = total
            progress.update()

        return find_series(root, progress=update, gaps=gaps)


def _with_noise(report: SeriesReport, series: Series) -> SeriesReport:
    """Add the noise estimate; a series whose slices cannot be decoded is none that could be used."""
    try:
        levels = noise_level(sample_slices_hu(series))
    except BundleError as error:
        return dataclasses.replace(report, verdict=REFUSED, reason=error.message, hint=error.hint)
    return dataclasses.replace(report, noise_hu=round(float(np.median(levels)), 2))


def _as_json(reports: Sequence[SeriesReport], ignored: Sequence[str]) -> str:
    content: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "series": [dataclasses.asdict(report) for report in reports],
        "ignored": list(ignored),
    }
    return json.dumps(content, indent=2, allow_nan=False)


def _table(reports: Sequence[SeriesReport], ignored: Sequence[str]) -> Iterator[str]:
    """Lines of at most WIDTH columns."""
    by_verdict = {name: [r for r in reports if r.verdict == name] for name in (USABLE, REFUSED, OTHER)}
    yield f"{len(by_verdict[USABLE])} usable, {len(by_verdict[REFUSED])} refused, {len(by_verdict[OTHER])} no CT volume"
    if by_verdict[USABLE]:
        yield from ("", _HEADER)
    for report in by_verdict[USABLE]:
        yield _row(report)
        yield from _wrapped(f"{report.where}: {_details(report)}", indent=2)
        for note in report.notes:
            yield from _wrapped(f"note: {note}", indent=2)
    for verdict, title in ((REFUSED, "refused:"), (OTHER, "no CT volume:")):
        if by_verdict[verdict]:
            yield from ("", title)
        for report in by_verdict[verdict]:
            yield from _wrapped(f"{report.where}: {report.reason}", indent=2)
            about = ", ".join(filter(None, [report.key and f"series {report.key}", report.scanner, report.kernel]))
            if about and verdict == REFUSED:
                yield from _wrapped(about, indent=4)
            if report.hint:
                yield from _wrapped(f"to do: {report.hint}", indent=4)
    if ignored:
        yield ""
        yield from _wrapped(f"no DICOM in spite of the name: {', '.join(map(shown, ignored))}", indent=2)


def _row(report: SeriesReport) -> str:
    assert report.size is not None and report.spacing_mm is not None
    size, spacing = "x".join(map(str, report.size)), "x".join(f"{value:.2f}" for value in report.spacing_mm)
    cells = f"{report.key:16} {size:12} {spacing:15} {_value(report.kvp):>4} {_span(report.tube_current_ma):>8}"
    return f"{cells} {_value(report.noise_hu):>6} {report.kernel or '-'}"[:WIDTH].rstrip()


def _details(report: SeriesReport) -> str:
    exposure = _span(report.exposure_mas)
    parts = [
        report.scanner,
        report.body_part,
        "" if report.thickness_mm is None else f"{report.thickness_mm:g} mm thick",
        "" if exposure == "-" else f"{exposure} mAs",
        report.transfer_syntax,
        "compressed with loss before" if report.lossy else "",
    ]
    return ", ".join(filter(None, parts))


def _value(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _span(values: tuple[float, float] | None) -> str:
    if values is None:
        return "-"
    return f"{values[0]:.4g}" if values[0] == values[1] else f"{values[0]:.4g}-{values[1]:.4g}"


def _wrapped(line: str, *, indent: int) -> list[str]:
    blank = " " * indent
    return textwrap.wrap(line, WIDTH, initial_indent=blank, subsequent_indent=f"{blank}  ", break_on_hyphens=False)
