"""Files and folders that are whole or absent, and digests of what is in them."""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from bundle.errors import BundleError, ExitCode


@contextlib.contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `target`; on success it replaces `target`, on error it vanishes.

    A reader therefore sees the old folder, no folder or the complete new one, never a part of it. What a killed process
    left of the same folder is removed first.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(target)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    temporary.chmod(0o755)  # mkdtemp is private to the user; results are for their colleagues too
    lock = _locked(temporary)
    try:
        yield temporary
        for folder, _, names in os.walk(temporary):
            for name in names:
                _sync(Path(folder) / name)
        if target.exists():
            shutil.rmtree(target)
        os.replace(temporary, target)
        _sync(target.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        if lock is not None:
            os.close(lock)


@contextlib.contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """Yield a temporary path in `target`'s folder; on success it is synced and renamed to `target`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, target)
        _sync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def remove_parts(folder: Path) -> None:
    """Remove the temporary folders and files that a killed process left; nobody else may be writing into `folder`."""
    for leftover in folder.glob(".*.part"):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()


def write_json(target: Path, content: Any, *, private: bool = False) -> None:
    """Write `content` as readable JSON, whole or not at all; `private` gives mode 0600."""
    with whole_file(target) as temporary:
        temporary.touch(mode=0o600 if private else 0o644)
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")


def digest(*parts: bytes | str) -> str:
    """SHA-256, in hex, of `parts`, each preceded by its length so that boundaries count."""
    return digest_of(parts)


def digest_of(parts: Iterable[bytes | str]) -> str:
    """`digest` of parts that are made one after the other."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(f"{len(data)}:".encode())
        total.update(data)
    return total.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256, in hex, of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def require_writable(folder: Path, *, option: str) -> Path:
    """Create `folder` and prove that it can be written to; `option` names the key that set it.

    Raises:
        BundleError: with exit code 74, when it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise BundleError(
            f"{option} '{folder.name}' cannot be written to: {error.strerror}",
            hint=f"name a folder that you may write to with --{option}",
            exit_code=ExitCode.IO,
        ) from error
    return folder


def _remove_leftovers(target: Path) -> None:
    """Remove temporary folders of `target` whose process has ended: it held a lock on its own."""
    name = re.compile(rf"\.{re.escape(target.name)}\.[a-z0-9_]{{8}}\.part")  # as mkdtemp makes them
    for leftover in target.parent.glob(".*.part"):
        if name.fullmatch(leftover.name) and (lock := _locked(leftover)) is not None:
            shutil.rmtree(leftover, ignore_errors=True)
            os.close(lock)


def _locked(folder: Path) -> int | None:
    """A descriptor that locks a folder until it is closed; None where another process has it or locks are unknown."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
