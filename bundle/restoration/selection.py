"""Which series of a folder a run restores: by rules on their headers, and by shares that workers do without talking."""

import enum
import logging
import re
from collections.abc import Mapping
from dataclasses import replace

from pydicom.dataset import Dataset

from bundle.data.sources import Case, Source, check_max_samples
from bundle.dicom.elements import Unusable, decimals, text
from bundle.dicom.headers import read_header
from bundle.dicom.index import Refusal
from bundle.dicom.sources import Sources
from bundle.dicom.writer import is_restored
from bundle.errors import BundleError
from bundle.files import digest

logger = logging.getLogger(__name__)

_RESTORED = "was restored by this program"
_SHARD = re.compile(r"(\d+)/(\d+)")


def select(
    source: Source,
    *,
    shard: str | None = None,
    description: str | None = None,
    kernel: str | None = None,
    thickness_mm: str | None = None,
    max_samples: int | None = None,
    tolerant: bool = False,
) -> Source:
    """Keep what all rules allow; rules on headers keep no series that has none (NIfTI).

    Series that were restored before are none to restore: they come with what is ignored.

    Args:
        source: what a folder holds.
        shard: 'i/n', i from 0: this worker's share. Shares depend on series keys alone; together they are everything
            and no two have a series in common. What was refused is shared out the same way.
        description: regular expression that Series Description must contain, whatever its case.
        kernel: the same for Convolution Kernel.
        thickness_mm: 'LOW-HIGH' or one number: Slice Thickness in mm, both ends included.
        max_samples: of what the rules and the share allow, only so many, the first by key.
        tolerant: only warn where nothing is left to restore.

    Raises:
        BundleError: when a rule cannot be read, max_samples is below 1, or nothing in the whole folder is left.
    """
    most = check_max_samples(max_samples)
    number, count = parse_shard(shard)
    limits = _limits(thickness_mm)
    patterns = {
        "SeriesDescription": _pattern("description", description),
        "ConvolutionKernel": _pattern("kernel", kernel),
    }
    rules = {keyword: pattern for keyword, pattern in patterns.items() if pattern is not None}
    judged = [(case, _verdict(case, rules, limits)) for case in source.cases if share_of(case.key, count) == number]
    cases = [case for case, verdict in judged if verdict is _Verdict.WANTED]
    restored = [Refusal(case.key, _RESTORED, case.label, foreign=True) for case, v in judged if v is _Verdict.RESTORED]
    # A share may be empty; that nothing at all is wanted is a mistake.
    if source.cases and not cases and not any(_verdict(c, rules, limits) is _Verdict.WANTED for c in source.cases):
        _nothing_left(ruled=bool(rules or limits), tolerant=tolerant)
    refused = [one for one in source.refused if share_of(_name(one), count) == number]
    return replace(source, cases=tuple(cases[:most]), refused=(*refused, *restored))


def _nothing_left(*, ruled: bool, tolerant: bool) -> None:
    what = "no series fits the rules on description, kernel and thickness" if ruled else f"every series {_RESTORED}"
    if not tolerant:
        raise BundleError(f"nothing to restore: {what}", hint="python -m bundle inspect lists what there is")
    logger.warning("nothing to restore: %s", what)


class _Verdict(enum.Enum):
    WANTED = enum.auto()
    RESTORED = enum.auto()  # an output of ours
    UNFIT = enum.auto()  # a rule leaves it out


def _verdict(case: Case, rules: Mapping[str, re.Pattern[str]], limits: tuple[float, float] | None) -> _Verdict:
    header = None if case.is_nifti else _header(case)
    if header is not None and is_restored(header):
        return _Verdict.RESTORED
    if not rules and limits is None:
        return _Verdict.WANTED
    if header is None or not all(pattern.search(text(header, keyword)) for keyword, pattern in rules.items()):
        return _Verdict.UNFIT
    return _Verdict.WANTED if limits is None or _within(header, limits) else _Verdict.UNFIT


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


def _header(case: Case) -> Dataset:
    with Sources() as sources, sources.open(case.files[0]) as stream:
        return read_header(stream)


def _within(header: Dataset, limits: tuple[float, float]) -> bool:
    try:
        return limits[0] <= decimals(header, "SliceThickness", count=1)[0] <= limits[1]
    except Unusable:
        return False
