"""Which CT series lie under a folder, found from headers alone; every other thing with the reason why not."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bundle.dicom.elements import Unusable
from bundle.dicom.grouping import Damaged, Refusal, assemble
from bundle.dicom.headers import NotDicom, Slice, read_slices
from bundle.dicom.series import Series
from bundle.dicom.sources import MEMBER_MARK, Sources, is_zip, walk
from bundle.dicom.volume import Volume
from bundle.errors import BundleError

__all__ = ["Refusal", "Series", "SeriesIndex", "find_series", "read_volume"]

_DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")


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
    """Headers of many sources, sorted into slices, damaged files and what is no DICOM."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.slices: list[Slice] = []
        self.damaged: list[Damaged] = []
        self.refused: list[Refusal] = []
        self.ignored: list[str] = []

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
                    self.slices += read_slices(stream, source)
                    return
        except NotDicom:
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

    def index(self, sources: Sources) -> SeriesIndex:
        """Assemble what was read."""
        series, refused = assemble(self.slices, self.damaged, sources=sources, where=self.where)
        everything = sorted([*self.refused, *refused], key=lambda r: (r.where, r.reason))
        found = [self._with_neighbours(s) for s in sorted(series, key=lambda s: s.key)]
        return SeriesIndex(found, everything, sorted(self.ignored))

    def _with_neighbours(self, series: Series) -> Series:
        """Note what lies beside a series and may have been its first or last slice: such a loss leaves no gap."""
        folders = {str(Path(self.where(path)).parent) for path in series.paths}
        beside = [name for name in self._unreadable() if str(Path(name).parent) in folders]
        if not beside:
            return series
        note = f"{len(beside)} unreadable files lie beside it ({beside[0]}): a first or last slice may be missing"
        return replace(series, notes=(*series.notes, note))

    def _unreadable(self) -> list[str]:
        """Files that may be damaged slices of any series."""
        lost = [self.where(d.source) for d in self.damaged if d.error.header is None and not d.error.foreign]
        return sorted([*lost, *self.ignored, *(r.where for r in self.refused)])


def find_series(root: Path, *, progress: Callable[[int, int], None] | None = None) -> SeriesIndex:
    """Find the CT volumes under `root`: a folder of any nesting, with or without ZIP archives, or one file.

    Args:
        root: the input.
        progress: called with (files read, files in all).

    Raises:
        BundleError: when `root` is missing, empty, or holds no DICOM at all.
    """
    root = Path(root)
    if not root.exists():
        raise BundleError(f"input '{root.name}' does not exist", hint="name a folder of DICOM files")
    paths = list(walk(root))
    if not paths:
        raise BundleError(f"input '{root.name}' is empty: no DICOM files", hint="name a folder of DICOM files")
    scan = _Scan(root if root.is_dir() else root.parent)
    with Sources() as sources:
        for number, path in enumerate(paths, start=1):
            scan.read(path, sources)
            if progress is not None:
                progress(number, len(paths))
        if not (scan.slices or scan.damaged or scan.refused):
            raise BundleError(f"input '{root.name}' holds no DICOM files", hint="name a folder of DICOM files")
        return scan.index(sources)


def read_volume(paths: Sequence[str] | str | Path) -> Volume:
    """Read one volume from an explicit list of files in any order, or from a folder that holds one series.

    Raises:
        BundleError: when they do not make exactly one CT volume; says why.
    """
    listed = [str(paths)] if isinstance(paths, str | Path) else [str(path) for path in paths]
    if not listed:
        raise BundleError("no files to read a volume from")
    if len(listed) == 1 and MEMBER_MARK not in listed[0]:
        index = find_series(Path(listed[0]))
    else:
        index = _index_of_files(dict.fromkeys(listed))  # a multi-frame object is listed once per frame
    if len(index.series) == 1:
        return index.series[0].load()
    if index.series:
        keys = ", ".join(series.key for series in index.series[:4])
        raise BundleError(f"input holds {len(index.series)} CT series ({keys})", hint="read them one by one")
    reasons = "; ".join(dict.fromkeys(f"{refusal.where}: {refusal.reason}" for refusal in index.refused[:3]))
    raise BundleError(f"no usable CT series: {reasons}", hint=index.refused[0].hint if index.refused else "")


def _index_of_files(paths: Iterable[str]) -> SeriesIndex:
    """Index of explicitly named files: one that is no usable CT image is an error, not something beside."""
    listed = list(paths)
    scan = _Scan(Path(os.path.commonpath([str(Path(path).absolute().parent) for path in listed])))
    with Sources() as sources:
        for path in listed:
            before = len(scan.slices)
            scan.read(path, sources)
            if len(scan.slices) == before and not scan.damaged and not scan.refused:
                raise BundleError(f"file '{Path(path).name}' is no DICOM file")
        index = scan.index(sources)
    if scan.damaged or scan.refused:
        return SeriesIndex([], index.refused, index.ignored)
    return index
