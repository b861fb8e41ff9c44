"""Which series of a folder a run restores: by rules on their headers, and by shares that workers do without talking."""

import itertools
import re
from dataclasses import replace

import pydicom
from pydicom.dataset import Dataset

from bundle.data.sources import Case, Source, check_max_samples
from bundle.dicom.elements import Unusable, decimals, quiet, text
from bundle.dicom.index import Refusal
from bundle.dicom.sources import Sources
from bundle.errors import BundleError
from bundle.files import digest

_SHARD = re.compile(r"(\d+)/(\d+)")


def select(
    source: Source,
    *,
    shard: str | None = None,
    description: str | None = None,
    kernel: str | None = None,
    thickness_mm: str | None = None,
    max_samples: int | None = None,
) -> Source:
    """Keep what all rules allow; rules on headers keep no series that has none (NIfTI).

    Args:
        source: what a folder holds.
        shard: 'i/n', i from 0: this worker's share. Shares depend on series keys alone; together they are everything
            and no two have a series in common. What was refused is shared out the same way.
        description: regular expression that Series Description must contain, whatever its case.
        kernel: the same for Convolution Kernel.
        thickness_mm: 'LOW-HIGH' or one number: Slice Thickness in mm, both ends included.
        max_samples: of what the rules and the share allow, only so many, the first by key.

    Raises:
        BundleError: when a rule cannot be read, or max_samples is below 1.
    """
    most = check_max_samples(max_samples)
    number, count = parse_shard(shard)
    limits = _limits(thickness_mm)
    patterns = {
        "SeriesDescription": _pattern("description", description),
        "ConvolutionKernel": _pattern("kernel", kernel),
    }
    rules = {keyword: pattern for keyword, pattern in patterns.items() if pattern is not None}

    def wanted(case: Case) -> bool:
        if share_of(case.key, count) != number:
            return False
        if not rules and limits is None:
            return True
        header = _header(case)
        if header is None or not all(pattern.search(text(header, keyword)) for keyword, pattern in rules.items()):
            return False
        return limits is None or _within(header, limits)

    refused = [one for one in source.refused if share_of(_name(one), count) == number]
    cases = tuple(itertools.islice(filter(wanted, source.cases), most))
    return replace(source, cases=cases, refused=tuple(refused))


def parse_shard(shard: str | None) -> tuple[int, int]:
    """(i, n) of 'i/n'; (0, 1) for None.

    Raises:
        BundleError: when it is no share.
    """
    if shard is None:
        return 0, 1
    match = _SHARD.fullmatch(str(shard).strip())
    number, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if not number < count:
        raise BundleError(f"shard '{shard}' is no share: write i/n with i from 0 to n - 1", hint="--shard 0/4")
    return number, count


def share_of(key: str, count: int) -> int:
    """Which of `count` shares a key belongs to."""
    return int(digest(key), 16) % count


def _name(refusal: Refusal) -> str:
    return refusal.key or refusal.where


def _pattern(name: str, rule: str | None) -> re.Pattern[str] | None:
    if rule is None:
        return None
    try:
        return re.compile(str(rule), re.IGNORECASE)
    except re.error as error:
        raise BundleError(f"select_{name} '{rule}' is no regular expression: {error}") from error


def _limits(rule: str | float | None) -> tuple[float, float] | None:
    if rule is None:
        return None
    try:
        low, _, high = str(rule).partition("-")
        limits = float(low), float(high or low)
    except ValueError as error:
        raise BundleError(f"select_thickness_mm '{rule}' is neither a number nor LOW-HIGH", hint="0.5-3") from error
    return limits


def _header(case: Case) -> Dataset | None:
    try:
        with quiet(), Sources() as sources, sources.open(case.files[0]) as stream:
            return pydicom.dcmread(stream, stop_before_pixels=True)
    except pydicom.errors.InvalidDicomError:
        return None


def _within(header: Dataset, limits: tuple[float, float]) -> bool:
    try:
        return limits[0] <= decimals(header, "SliceThickness", count=1)[0] <= limits[1]
    except Unusable:
        return False
