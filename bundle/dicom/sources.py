"""Where DICOM bytes come from: plain files of any nesting, and members of ZIP archives.

A source is a string: a path, or "archive.zip!/member" for a file in an archive.
"""

import errno
import io
import os
import stat
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from bundle.errors import BundleError

MEMBER_MARK = "!/"
_OF_THE_DISK = "lost+found"  # at the top of many volumes, for root alone
MAX_FILE_BYTES = 2 << 30  # a CT object of more is not one we can hold
MAX_EXPANSION = 100  # deflate's real gain on CT is 2 to 4; 1,000 is a bomb
MAX_MEMBERS = 100_000
_DIRECTORY_END_BYTES = 22 + 0xFFFF  # with the longest comment
MIN_SUSPECT_BYTES = 16 << 20  # small members may be as repetitive as they like


class ClampedReader(io.BufferedReader):
    """A file reader that never allocates more than the file holds, whatever length an element claims."""

    def __init__(self, raw: io.FileIO) -> None:
        super().__init__(raw, buffer_size=64 << 10)
        self._size = os.fstat(raw.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        """Read at most `size` bytes, and at most what is left."""
        if size is not None and size > 1 << 20:
            size = max(0, min(size, self._size - self.tell()))
        return super().read(size)


def identity(stream: BinaryIO) -> tuple[int, ...] | None:
    """What tells whether a file is still the same: device, inode, size, time of change; None for what is no file."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, AttributeError):
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class Sources:
    """Opens sources; keeps archives open while in use, none afterwards (so it never crosses a fork)."""

    def __init__(self) -> None:
        self._archives: dict[str, zipfile.ZipFile] = {}

    def __enter__(self) -> "Sources":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for archive in self._archives.values():
            archive.close()
        self._archives.clear()

    def open(self, source: str) -> BinaryIO:
        """Return a seekable stream of `source`'s bytes.

        Raises:
            OSError: when it cannot be read.
            BundleError: when it is larger than what is read into memory.
        """
        if MEMBER_MARK in source and not os.path.lexists(source):
            archive, member = source.split(MEMBER_MARK, 1)
            return io.BytesIO(self._member(archive, member))
        raw = io.FileIO(source)
        if os.fstat(raw.fileno()).st_size > MAX_FILE_BYTES:
            raw.close()
            raise BundleError("file is larger than the limit of 2 GiB")
        return ClampedReader(raw)

    def _member(self, archive: str, member: str) -> bytes:
        try:
            info = self._archive(archive).getinfo(member)
            _check_member(info)
            return self._archive(archive).read(info)
        except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, NotImplementedError, RuntimeError) as error:
            raise OSError("archive member is damaged") from error

    def members(self, path: str) -> list[str]:
        """Sources of the files in the archive at `path`, in order of their names.

        Raises:
            BundleError: when the archive is damaged, encrypted, expands beyond reason or climbs out of its folder.
        """
        try:
            infos = self._archive(path).infolist()
            _check_count(path, len(infos))
            infos = [info for info in infos if not info.is_dir()]
        except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError) as error:
            raise BundleError("zip archive is damaged", hint="pack the series again") from error
        if len(infos) > MAX_MEMBERS:
            raise BundleError(f"zip archive is too large: it holds more than the limit of {MAX_MEMBERS} files")
        for info in infos:
            _check_member(info)
        if sum(info.file_size for info in infos) > 64 << 30:
            raise BundleError("zip archive is too large: it expands to more than the limit of 64 GiB")
        return sorted(f"{path}{MEMBER_MARK}{info.filename}" for info in infos)

    def _archive(self, path: str) -> zipfile.ZipFile:
        if path not in self._archives:
            self._archives[path] = zipfile.ZipFile(path)
        return self._archives[path]


def _check_count(path: str, found: int) -> None:
    """Refuse a directory that lists fewer members than its end says: a damaged length swallows the next entries.

    Raises:
        ValueError: when it does.
    """
    with Path(path).open("rb") as stream:
        stream.seek(max(0, stream.seek(0, os.SEEK_END) - _DIRECTORY_END_BYTES))
        tail = stream.read()
    at = tail.rfind(b"PK\x05\x06")
    said = int.from_bytes(tail[at + 10 : at + 12], "little")
    if said != 0xFFFF and said != found % 0x10000:  # 65,535: the number is elsewhere
        raise ValueError(f"{found} members instead of {said}")


def _check_member(info: zipfile.ZipInfo) -> None:
    """Refuse what an archive made for exchange never holds."""
    parts = info.filename.replace("\\", "/").split("/")
    if ".." in parts or info.filename.startswith(("/", "\\")) or ":" in parts[0]:
        raise BundleError("zip entry has a path that leads out of its folder (..)", hint="do not trust this archive")
    if info.flag_bits & 0x1:
        raise BundleError("zip entry is encrypted", hint="unpack the archive and give the folder")
    too_large = info.file_size > MAX_FILE_BYTES
    bomb = info.file_size > MIN_SUSPECT_BYTES and info.file_size > MAX_EXPANSION * max(info.compress_size, 1)
    if too_large or bomb:
        raise BundleError("zip entry expands beyond the size limit", hint="do not trust this archive")


def walk(root: Path, *, unseen: list[str] | None = None) -> Iterator[str]:
    """Paths of the regular files under `root` (or `root` itself), in order of their names.

    Links to files and folders are followed, each real folder once; pipes, sockets, devices and links that lead
    nowhere are passed over.

    Args:
        root: a folder, or a file.
        unseen: takes the paths of what cannot be looked into, folders and files.

    Raises:
        OSError: when `root` itself cannot be listed.
    """
    unseen = [] if unseen is None else unseen
    if root.is_file():
        yield str(root)
        return
    seen: set[tuple[int, int]] = set()
    folders = [str(root)]
    while folders:
        folder = folders.pop()
        try:
            entries, identity = _entries(folder, unseen)
        except OSError:
            if folder == str(root):
                raise
            if Path(folder).name != _OF_THE_DISK:
                unseen.append(folder)
            continue
        if identity in seen:
            continue
        seen.add(identity)
        below: list[str] = []
        for path, mode in entries:
            if stat.S_ISDIR(mode):
                below.append(path)
            elif stat.S_ISREG(mode):
                yield path
        folders.extend(reversed(below))


def _entries(folder: str, unseen: list[str]) -> tuple[list[tuple[str, int]], tuple[int, int]]:
    """(path, mode) of what lies in `folder`, sorted, and the folder's identity."""
    found: list[tuple[str, int]] = []
    status = Path(folder).stat()
    for path in sorted(str(path) for path in Path(folder).iterdir()):
        try:
            found.append((path, Path(path).stat().st_mode))
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ELOOP):  # a link that leads nowhere hides nothing
                unseen.append(path)
    return found, (status.st_dev, status.st_ino)


def is_zip(stream: Any) -> bool:
    """Whether the stream begins as a ZIP archive does; leaves it at its start."""
    stream.seek(0)
    head = stream.read(4)
    stream.seek(0)
    return bool(head == b"PK\x03\x04")
