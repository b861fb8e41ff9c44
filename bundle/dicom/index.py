"""Which CT series lie under a folder, found from headers alone; every other thing with the reason why not.

A slice that is lost inside a series leaves a gap, which is refused; a first or last slice that is lost leaves none.
So a file that may have been one is never passed over in silence. Where its header can still be read, it refuses its
series. Where not even that is left, nobody can say whose slice it was, or whether it was one: the series beside it
are used with a note, and the file counts among what was refused, so that a run ends with exit code 3 and names it.
Refusing the series instead would make a stray text file named .dcm take a patient's good scan away. `read_volume`,
which has no such place to tell, refuses.
"""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bundle.dicom.elements import Unusable, text
from bundle.dicom.grouping import Damaged, Refusal, assemble
from bundle.dicom.headers import NotDicom
from bundle.dicom.layouts import FAMILY_OF, transfer_syntax
from bundle.dicom.series import Series
from bundle.dicom.slice_grid import check_gaps_option
from bundle.dicom.slices import Slice, read_slices
from bundle.dicom.sources import MEMBER_MARK, Sources, is_zip, walk
from bundle.dicom.volume import Volume
from bundle.dicom.workers import prepare
from bundle.errors import BundleError
from bundle.pages import Pages, plain_pages

__all__ = ["NoDicom", "Refusal", "Series", "SeriesIndex", "find_series", "only_series", "read_volume"]

_DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
_LOST = "a first or last slice may be missing"
_MAYBE_A_SLICE = "cannot be read as DICOM, yet lies beside a series as a slice of it would: one may be missing"


class NoDicom(BundleError):
    """An input without any DICOM file."""


@dataclass(frozen=True, eq=False)
class SeriesIndex:
    """What an input holds.

    Attributes:
        series: usable CT volumes, sorted by key.
        refused: what is not used, and why.
        ignored: relative paths of files that are named as DICOM is but are not.
    """

    series: list[Series]
    refused: list[Refusal]
    ignored: list[str]


class _Scan:
    """Headers of many sources, sorted into slices, damaged files and what is no DICOM.

    Args:
        root: of the input.
        to_decode: how many frames will be decoded right after; workers for them start with the first one's header.
    """

    def __init__(self, root: Path, *, to_decode: int = 0) -> None:
        self.root = root
        self.to_decode = to_decode
        self.slices: list[Slice] = []
        self.damaged: list[Damaged] = []
        self.refused: list[Refusal] = []
        self.ignored: list[str] = []
        self.strangers: list[str] = []

    def where(self, source: str) -> str:
        """Path relative to the input: folders above it may carry names."""
        both = Path(source).is_absolute() == self.root.is_absolute()
        relative = os.path.relpath(source, self.root) if both else source
        return Path(source).name if relative.startswith("..") else relative.replace(os.sep, "/")

    def read(self, source: str, sources: Sources, *, archives: bool = True) -> None:
        """Read one source's header; an archive's members' headers."""
        try:
            with sources.open(source) as stream:
                if archives and is_zip(stream):
                    members = sources.members(source)
                else:
                    self._add(read_slices(stream, source))
                    return
        except NotDicom:
            self.strangers.append(source)
            if source.lower().endswith(_DICOM_SUFFIXES):
                self.ignored.append(self.where(source))
            return
        except Unusable as error:
            self.damaged.append(Damaged(source, error))
            return
        except BundleError as error:
            self.refused.append(Refusal("", error.message, self.where(source), error.hint))
            return
        except Exception:  # an archive member may raise anything of zlib's or zipfile's
            self.refused.append(Refusal("", "file cannot be read", self.where(source), "check its permissions"))
            return
        for member in members:
            self.read(member, sources, archives=False)

    def _add(self, slices: list[Slice]) -> None:
        self.slices += slices
        family = FAMILY_OF.get(transfer_syntax(slices[0].header))
        if self.to_decode and family is not None:
            prepare(family, count=self.to_decode)
            self.to_decode = 0

    def index(self, sources: Sources, *, gaps: str = "refuse") -> SeriesIndex:
        """Assemble what was read."""
        series, refused = assemble(self.slices, self.damaged, sources=sources, where=self.where, gaps=gaps)
        lost = [self.where(d.source) for d in self.damaged if _whose(d) == "" and not d.error.foreign]
        lost += [refusal.where for refusal in self.refused]  # these are refused already
        found, uncounted = [], set()
        for one in sorted(series, key=lambda s: s.key):
            silent = self._strangers_beside(one)
            uncounted.update(silent)
            found.append(_with_neighbours(one, sorted({*silent, *_beside(self._folders(one), lost)})))
        refused += [
            Refusal("", _MAYBE_A_SLICE, name, "fetch the series again, or move the file away") for name in uncounted
        ]
        everything = sorted([*self.refused, *refused], key=lambda r: (r.where, r.reason))
        return SeriesIndex(found, everything, sorted(self.ignored))

    def _folders(self, series: Series) -> set[str]:
        return {str(Path(self.where(path)).parent) for path in series.paths}

    def _strangers_beside(self, series: Series) -> list[str]:
        """Files beside a series that are no DICOM, but are named as DICOM is or as the series' own files are."""
        shapes = {_name_shape(path) for path in series.paths}
        named = [s for s in self.strangers if s.lower().endswith(_DICOM_SUFFIXES) or _name_shape(s) in shapes]
        return _beside(self._folders(series), [self.where(source) for source in named])


def _whose(file: Damaged) -> str:
    """Series Instance UID of a damaged file, "" where it is lost."""
    return "" if file.error.header is None else text(file.error.header, "SeriesInstanceUID")


def _beside(folders: set[str], names: Iterable[str]) -> list[str]:
    return [name for name in names if str(Path(name).parent) in folders]


def _name_shape(source: str) -> str:
    """A file's name with its numbers blanked out: 'IM0012' and 'IM0013' have one shape; "" without numbers."""
    name = source.replace("\\", "/").rsplit("/", 1)[-1]
    shape = re.sub(r"[0-9]+", "#", name)
    return "" if shape == name else shape


def _with_neighbours(series: Series, beside: Sequence[str]) -> Series:
    """Note what lies beside a series and may have been its first or last slice: such a loss leaves no gap."""
    if not beside:
        return series
    note = f"{len(beside)} unreadable files lie beside it ({beside[0]}): {_LOST}"
    return replace(series, notes=(*series.notes, note))


def find_series(root: Path, *, progress: Callable[[int, int], None] | None = None, gaps: str = "refuse") -> SeriesIndex:
    """Find the CT volumes under `root`: a folder of any nesting, with or without ZIP archives, or one file.

    Args:
        root: the input.
        progress: called with (files read, files in all).
        gaps: 'refuse' series with gaps or uneven spacing, or 'resample' them by true positions.

    Raises:
        NoDicom: when `root` is empty, or holds no DICOM at all.
        BundleError: when it is missing.
    """
    return _find_series(Path(root), progress=progress, gaps=gaps)


def _find_series(
    root: Path, *, progress: Callable[[int, int], None] | None = None, gaps: str, decode: bool = False
) -> SeriesIndex:
    check_gaps_option(gaps)
    if not root.exists():
        raise BundleError(f"input '{root.name}' does not exist", hint="name a folder of DICOM files")
    unseen: list[str] = []
    paths = list(walk(root, unseen=unseen))
    if not paths and not unseen:
        raise NoDicom(f"input '{root.name}' is empty: no DICOM files", hint="name a folder of DICOM files")
    scan = _Scan(root if root.is_dir() else root.parent, to_decode=len(paths) if decode else 0)
    scan.refused += [
        Refusal("", "cannot be looked into", scan.where(path), "check its owner and permissions") for path in unseen
    ]
    with Sources() as sources:
        for number, path in enumerate(paths, start=1):
            scan.read(path, sources)
            if progress is not None:
                progress(number, len(paths))
        if not (scan.slices or scan.damaged or scan.refused):
            raise NoDicom(f"input '{root.name}' holds no DICOM files", hint="name a folder of DICOM files")
        return scan.index(sources, gaps=gaps)


def read_volume(paths: Sequence[str] | str | Path, *, gaps: str = "refuse", pages: Pages = plain_pages) -> Volume:
    """Read one volume from an explicit list of files in any order, or from a folder that holds one series.

    Args:
        paths: files, or one folder.
        gaps: as for `find_series`.
        pages: makes the array for the stored values, in memory or on disk (`bundle.pages`).

    Raises:
        BundleError: when they do not make exactly one CT volume; says why.
    """
    return only_series(paths, gaps=gaps, decode=True).load(pages)


def only_series(paths: Sequence[str] | str | Path, *, gaps: str = "refuse", decode: bool = False) -> Series:
    """The one series that files make, from their headers; arguments and errors as of `read_volume`.

    Args:
        paths: files, or one folder.
        gaps: as for `find_series`.
        decode: start what decodes its frames, because they are read next.
    """
    listed = [str(paths)] if isinstance(paths, str | Path) else [str(path) for path in paths]
    if not listed:
        raise BundleError("no files to read a volume from")
    if len(listed) == 1 and MEMBER_MARK not in listed[0]:
        index = _find_series(Path(listed[0]), gaps=gaps, decode=decode)
    else:
        # A multi-frame object is listed once per frame.
        index = _index_of_files(dict.fromkeys(listed), gaps=check_gaps_option(gaps), decode=decode)
    doubts = [note for series in index.series for note in series.notes if _LOST in note]
    if len(index.series) == 1 and doubts:
        raise BundleError(doubts[0], hint="fetch the series again, or name its files")
    if len(index.series) == 1:
        return index.series[0]
    if index.series:
        keys = ", ".join(series.key for series in index.series[:4])
        raise BundleError(f"input holds {len(index.series)} CT series ({keys})", hint="read them one by one")
    reasons = "; ".join(dict.fromkeys(f"{refusal.where}: {refusal.reason}" for refusal in index.refused[:3]))
    raise BundleError(f"no usable CT series: {reasons}", hint=index.refused[0].hint if index.refused else "")


def _index_of_files(paths: Iterable[str], *, gaps: str, decode: bool) -> SeriesIndex:
    """Index of explicitly named files: one that is no usable CT image is an error, not something beside."""
    listed = list(paths)
    root = Path(os.path.commonpath([str(Path(path).absolute().parent) for path in listed]))
    scan = _Scan(root, to_decode=len(listed) if decode else 0)
    with Sources() as sources:
        for path in listed:
            before = len(scan.slices)
            scan.read(path, sources)
            if len(scan.slices) == before and not scan.damaged and not scan.refused:
                raise BundleError(f"file '{Path(path).name}' is no DICOM file")
        index = scan.index(sources, gaps=gaps)
    if scan.damaged or scan.refused:
        return SeriesIndex([], index.refused, index.ignored)
    return index
