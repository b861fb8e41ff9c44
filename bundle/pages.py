"""Memory for whole studies: plain pages, or a file on disk that is mapped, so that a long study takes no more memory.

A mapped file's pages come into memory when they are touched. `let_go` hands them back to the system, which keeps the
values: what a process holds of a study is then what it works on, not what it has seen.
"""

import errno
import math
import mmap
import os
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.lib.array_utils import byte_bounds
from numpy.typing import DTypeLike

from bundle.errors import BundleError, ExitCode

# (shape, number type) -> a new array of zeros.
Pages = Callable[[tuple[int, ...], DTypeLike], np.ndarray]

_PAGE = mmap.PAGESIZE
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class _MappedFile(mmap.mmap):
    """A file's pages, shared with the file: dropping them loses nothing, as it would with anonymous ones."""


_mapped: dict[int, weakref.ref[_MappedFile]] = {}  # by address


def plain_pages(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """An array of zeros, without the huge pages numpy asks for: making them took longer than the decoding."""
    kind = np.dtype(dtype)
    if not hasattr(mmap, "MAP_ANONYMOUS"):
        return np.zeros(shape, dtype=kind)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    pages = mmap.mmap(-1, math.prod(shape) * kind.itemsize, flags=flags)
    return np.frombuffer(pages, dtype=kind).reshape(shape)


class Scratch:
    """Gives arrays whose values lie in a folder on disk, in files without a name: they vanish with the last array.

    The system removes them also when the process is killed.

    Args:
        folder: on a disk, not in memory (tmpfs); None keeps arrays in memory.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = None if folder is None else Path(folder)

    @property
    def on_disk(self) -> bool:
        """Whether arrays lie in files."""
        return self.folder is not None

    def __call__(self, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
        """A new array of zeros.

        Raises:
            BundleError: with exit code 74, when the disk has no room for it or the folder cannot hold it.
        """
        if self.folder is None:
            return plain_pages(shape, dtype)
        kind = np.dtype(dtype)
        size = math.prod(shape) * kind.itemsize
        try:
            with tempfile.TemporaryFile(dir=self.folder) as file:
                _reserve(file.fileno(), size)
                pages = _MappedFile(file.fileno(), size)
        except OSError as error:
            raise _refusal(error, self.folder, size) from error
        array = np.frombuffer(pages, dtype=kind).reshape(shape)
        address = byte_bounds(array)[0]
        _mapped[address] = weakref.ref(pages, lambda _: _mapped.pop(address, None))
        return array


def let_go(array: np.ndarray) -> None:
    """Hand back the memory of an array, or of a part of one, that lies on disk; others are left as they are.

    The values stay. Pages are handed back whole: let go of slices that lie together in memory.
    """
    if not _mapped or array.size == 0 or not hasattr(mmap, "MADV_DONTNEED"):
        return
    low, high = byte_bounds(array)
    for address, reference in list(_mapped.items()):
        pages = reference()
        if pages is not None and address <= low and high <= address + len(pages):
            first = (low - address) // _PAGE * _PAGE
            pages.madvise(mmap.MADV_DONTNEED, first, high - address - first)
            return


def _reserve(descriptor: int, size: int) -> None:
    """Make a file of zeros whose room on the disk is its own: a full disk is an error now, not a crash later."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
        return
    block = bytes(1 << 20)
    for start in range(0, size, len(block)):
        os.write(descriptor, block[: size - start])


def _refusal(error: OSError, folder: Path, size: int) -> BundleError:
    why = "is full" if error.errno in _NO_ROOM else f"cannot hold a working file ({error.strerror})"
    return BundleError(
        f"folder '{folder.name}' {why}: {size / 1e9:.2g} GB are needed there while a series is worked on",
        hint="name another folder with --scratch_dir",
        exit_code=ExitCode.IO,
    )
